"""What a user has to say in a model card: words and metadata that no run can know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hubprune.errors import ConfigError
from hubprune.fields import in_our_words

# What a run knows better than anybody.
FIXED = ("base_model", "base_model_relation", "library_name", "model-index")
WORDS = (
    "title",
    "description",
    "intended_use",
    "prompt",
    "developed_by",
    "contact",
    "citation",
    "license",
    "license_name",
    "license_link",
    "pipeline_tag",
)
LISTS = ("limitations", "language", "tags", "datasets")


@dataclass
class PrunedModelCardData:
    """What fills in or overrides the fields of a model card; kept in the report, so that a later card has it too.

    Numbers and the base model are those of the run, whatever is said here.

    Attributes:
        title: Heading of the card. None: the repository's name.
        description: Markdown behind the first paragraph.
        intended_use: For whom and what the model is made, as Markdown.
        prompt: Prompt of the usage examples. None: the first row of the domain text.
        developed_by: Who made the model.
        contact: Where questions go.
        citation: BibTeX entry of this model.
        limitations: Further sentences under "Limits".
        license: Identifier of the licence. None: the base's.
        license_name: Name of a licence that the Hub does not know.
        license_link: Address of its text.
        pipeline_tag: Task of the model. None: the base's.
        language: Languages. Empty: the base's.
        tags: Further tags.
        datasets: Further data sets.
        metadata: Further metadata as it is to stand in the README, such as ``{"thumbnail": "..."}``.

    Raises:
        ConfigError: Any field is of another kind, or metadata names what the run knows or what has a field here.
    """

    title: str | None = None
    description: str | None = None
    intended_use: str | None = None
    prompt: str | None = None
    developed_by: str | None = None
    contact: str | None = None
    citation: str | None = None
    limitations: list[str] = field(default_factory=list)
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    pipeline_tag: str | None = None
    language: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = []
        for name in WORDS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                problems.append(f"{name} must be text, got {value!r}")
        for name in LISTS:
            value = getattr(self, name)
            value = [value] if isinstance(value, str) else value
            if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
                setattr(self, name, list(value))
            else:
                problems.append(f"{name} must be a list of texts, got {value!r}")
        if not isinstance(self.metadata, dict):
            problems.append(f"metadata must be a mapping of keys of the README's head, got {self.metadata!r}")
        else:
            problems += [
                f"metadata cannot set {key!r}, which the run knows: leave it out"
                for key in FIXED
                if key in self.metadata
            ]
            own = [f.name for f in fields(self) if f.name in self.metadata]
            problems += [f"metadata cannot set {key!r}, which has a field: give {key}=" for key in own]
        if problems:
            raise ConfigError(problems)

    @classmethod
    def of(cls, value: PrunedModelCardData | Mapping[str, Any]) -> PrunedModelCardData:
        """Read what a user gives: the data itself, or its fields.

        Raises:
            ConfigError: There is no such field, or one breaks a rule.
        """
        return value if isinstance(value, cls) else cls(**in_our_words(cls, dict(value)))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """The fields that say something."""
        return {name: value for name, value in asdict(self).items() if value not in (None, [], {})}
