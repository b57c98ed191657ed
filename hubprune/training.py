"""An adapter trained by transformers' Trainer: data, loss, checkpoints, the held-out loss that ends it.

Nothing here is about pruning: the adapter that is trained keeps what has to be kept.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hubprune.adapters import without_remark
from hubprune.errors import ConfigError, NumericalError
from hubprune.outcomes import LossPoint
from hubprune.recovery_config import RecoveryConfig

# A checkpoint without it was not finished when its run was killed.
WHOLE = "whole"
IGNORED = -100  # label of a token that is not predicted, as transformers counts
# Points of the loss curve between two looks at the held-out text.
POINTS = 5


class Teacher(Protocol):
    """Something that knows the dense model's logits of each training sequence."""

    def logits(self, positions: Sequence[int], token_ids: torch.Tensor) -> torch.Tensor:
        """Logits of some sequences, ``(b, T, vocabulary)``.

        Args:
            positions: Places of the sequences among the training sequences.
            token_ids: The sequences, ``(b, T)``, padded to one length.
        """
        ...


def check_reports(config: RecoveryConfig) -> None:
    """Refuse a place to report to that transformers does not find here.

    Raises:
        ConfigError: Names it.
    """
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations() if config.report_to else []
    for name in config.report_to:
        if name not in available and name != "all":
            raise ConfigError(
                f"report_to names what transformers can report to here ({', '.join(available) or 'nothing'}), got "
                f"{name!r}: install its package, or leave it out"
            )


class Sequences(Dataset):
    """Token sequences, each with its place."""

    def __init__(self, sequences: Sequence[torch.Tensor]) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {"token_ids": self.sequences[position], "position": position}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack sequences, padded on the right where their lengths differ."""
    rows = [item["token_ids"] for item in items]
    longest = max(len(row) for row in rows)
    ids = torch.stack([F.pad(row, (0, longest - len(row))) for row in rows])
    mask = torch.stack([F.pad(torch.ones_like(row), (0, longest - len(row))) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, IGNORED),
        "positions": torch.tensor([item["position"] for item in items]),
    }


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divergence of two models' predictions, KL(teacher || student) times the temperature squared (arXiv:1503.02531).

    Args:
        student: Logits, ``(n, vocabulary)``.
        teacher: Logits, ``(n, vocabulary)``.
        temperature: What both are divided by.

    Returns:
        Nats, the sum over the n tokens, in float32.
    """
    logs = F.log_softmax(student.float() / temperature, -1)
    aims = F.log_softmax(teacher.float() / temperature, -1)
    return F.kl_div(logs, aims, reduction="sum", log_target=True) * temperature**2


class _Trainer(Trainer):
    """The Trainer with a loss that may look at a teacher, whose loss of held-out text is the cross entropy alone."""

    loss_is_scaled_for_ga = True  # each token counts the same, however many forward passes make a step

    def __init__(self, *args: Any, config: RecoveryConfig, teacher: Teacher | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config, self.teacher = config, teacher

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of a predicted token, in nats."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        labels = inputs["labels"][:, 1:]
        counted = labels != IGNORED
        logits = outputs.logits[:, :-1][counted]
        loss = F.cross_entropy(logits.float(), labels[counted], reduction="sum")
        if self.teacher is not None and model.training:
            given = self.teacher.logits(inputs["positions"].tolist(), inputs["input_ids"])[:, :-1][counted]
            weight = self.config.distill_weight
            parted = distillation(logits, given.to(logits.device), self.config.temperature)
            loss = (1 - weight) * loss + weight * parted
        tokens = counted.sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / tokens
        return (loss, {"loss": loss}) if return_outputs else loss


class _Watcher(TrainerCallback):
    """A progress bar that says the losses, and a mark in each checkpoint once it is whole."""

    def __init__(self, config: RecoveryConfig, progress: bool) -> None:
        self.bar = tqdm(desc="Recovering", unit="step", total=config.steps, disable=not progress, leave=False)
        self.shown: dict[str, str] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        for name, said in (("loss", "loss"), ("eval_loss", "held-out")):
            if name in (logs or {}):
                self.shown[said] = f"{float(logs[name]):.3f}"
        self.bar.set_postfix(self.shown)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        curve: The losses along the way.
        steps: Steps taken.
        kept_step: The step whose adapter is kept; 0 when the held-out loss was never below that before training.
        tokens: Tokens trained on, each as often as it was seen.
    """

    curve: list[LossPoint]
    steps: int
    kept_step: int
    tokens: int


def train(
    wrapped: Any,
    sequences: Sequence[torch.Tensor],
    held_out: Sequence[torch.Tensor],
    config: RecoveryConfig,
    folder: Path,
    *,
    teacher: Teacher | None = None,
    progress: bool = True,
) -> Trained:
    """Train the adapter of a model, or what is left of the training.

    Args:
        wrapped: The model as PEFT wraps it.
        sequences: Token ids to train on, each ``(T,)``.
        held_out: Token ids to look at; none to keep the last step.
        config: How, with its defaults filled in.
        folder: Where checkpoints are; a training goes on with the last one that is whole.
        teacher: Knows the dense model's logits of the sequences.
        progress: Whether to show a progress bar.

    Raises:
        NumericalError: A loss is NaN or infinite.
    """
    assert config.steps is not None
    assert config.learning_rate is not None
    every = min(config.evaluate_every, config.steps)
    looks = bool(held_out)
    device = next(wrapped.parameters()).device
    on_gpu = device.type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(config.warmup * config.steps),
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        bf16=on_gpu and torch.cuda.is_bf16_supported() if config.bf16 is None else config.bf16,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        logging_steps=max(1, every // POINTS),
        logging_first_step=True,
        eval_strategy="steps" if looks else "no",
        eval_on_start=looks,
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=looks,
        metric_for_best_model="eval_loss" if looks else None,
        greater_is_better=False if looks else None,
        prediction_loss_only=True,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=config.seed,
        data_seed=config.seed,
        report_to=list(config.report_to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        use_cpu=device.type == "cpu",
    )
    callbacks: list[TrainerCallback] = [_Watcher(config, progress)]
    if looks and config.patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.patience))
    with without_remark():
        trainer = _Trainer(
            wrapped,
            arguments,
            config=config,
            teacher=teacher,
            data_collator=collate,
            train_dataset=Sequences(sequences),
            eval_dataset=Sequences(held_out) if looks else None,
            callbacks=callbacks,
        )
        for chatty in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(chatty)
        trainer.train(resume_from_checkpoint=_last_whole(folder))
    return _outcome(trainer.state, config, sequences)


def _last_whole(folder: Path) -> str | None:
    """The last checkpoint that is whole, None where there is none; what is not whole goes."""
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    for path in found.values():
        if not (path / WHOLE).is_file():
            shutil.rmtree(path)
    whole = [step for step, path in found.items() if path.is_dir()]
    return str(found[max(whole)]) if whole else None


def _outcome(state: Any, config: RecoveryConfig, sequences: Sequence[torch.Tensor]) -> Trained:
    points: dict[int, LossPoint] = {}
    for row in state.log_history:
        point = points.setdefault(int(row["step"]), LossPoint(int(row["step"])))
        if "loss" in row:
            point.training = round(float(row["loss"]), 6)
        if "eval_loss" in row and point.held_out is None:
            point.held_out = round(float(row["eval_loss"]), 6)
    curve = [points[step] for step in sorted(points) if points[step].training or points[step].held_out]
    if not all(math.isfinite(value) for p in curve for value in (p.training, p.held_out) if value is not None):
        raise NumericalError(
            f"the loss must be finite, and it is not with a learning rate of {config.learning_rate}: lower it"
        )
    seen = [point for point in curve if point.held_out is not None]
    kept = int(state.global_step)
    if seen:
        kept = min(seen, key=lambda point: point.held_out or 0.0).step
    mean_length = sum(map(len, sequences)) / len(sequences)
    tokens = round(state.global_step * config.batch_size * config.accumulation * mean_length)
    return Trained(curve, int(state.global_step), kept, tokens)
