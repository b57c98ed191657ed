"""Figures show what the report says, are PNG files that can be read on white and on dark pages, and leave no trace."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from PIL import Image

from hubprune import drawing, figures
from hubprune.card import render_card
from hubprune.cli.folder import rewrite_card
from hubprune.errors import OutputError, UsageError
from hubprune.facts import MatrixFacts, UnitFacts, pack_removed
from hubprune.outcomes import LossPoint, RecoveryFacts
from hubprune.report import PruningReport
from hubprune.saving import save
from tests.pruned import prune_by_hand, tiny_model

ROOT = Path(__file__).resolve().parents[1]
WHITE, DARK = (1.0, 1.0, 1.0), (13 / 255, 17 / 255, 23 / 255)  # the pages of the Hub
QUANTILES = {"min": 0.01, "p5": 0.1, "p25": 1.0, "median": 2.0, "p75": 4.0, "p95": 40.0, "max": 90.0, "threshold": 0.5}


def matrices() -> list[MatrixFacts]:
    """Two layers; the experts of the second have 10 and 30 of 100 and 300 weights removed."""
    name = "m.{}.experts.up_proj[{}]"
    return [
        MatrixFacts("m.0.q_proj", 0, "q_proj", (10, 10), 25, 25, overlap={"general/domain": 0.75}),
        MatrixFacts("m.1.q_proj", 1, "q_proj", (10, 10), 75, 80, overlap={"general/domain": 0.25}),
        MatrixFacts(name.format(1, 0), 1, "up_proj", (10, 10), 10, 10, overlap={"general/domain": 0.5}),
        MatrixFacts(name.format(1, 1), 1, "up_proj", (30, 10), 150, 150, overlap={"general/domain": 0.9}),
    ]


def unit_row(block: int, removed: int, **more: Any) -> UnitFacts:
    bits = pack_removed([index < removed for index in range(12)])
    return UnitFacts(f"m.{block}.mlp", block, "ffn_neuron", 12, bits, 30, **more)


def report() -> PruningReport:
    """A report with everything that there is a figure of."""
    rows = [
        unit_row(0, 3, scores=QUANTILES, overlap={"en/de": 0.5}, stand_ins=[(0, 5, 1.0), (1, 6, 2.0), (2, 7, 4.0)]),
        unit_row(1, 5, scores={**QUANTILES, "threshold": 0.7}, overlap={"en/de": 1.0}, stand_ins=[(4, 9, 8.0)]),
        UnitFacts("m", 0, "layer", 3, pack_removed([False, True, False]), 500, each=[0.4, 0.1, 0.2]),
    ]
    return PruningReport(matrices=matrices(), units=rows)


def drawn(draw: Callable[..., Any], *arguments: Any) -> Any:
    with drawing.styled():
        return draw(*arguments)


def cells(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def labels(axes: Any) -> tuple[list[str], list[str]]:
    return (
        [label.get_text() for label in axes.get_yticklabels()],
        [label.get_text() for label in axes.get_xticklabels()],
    )


def test_sparsity_adds_experts_up_and_leaves_out_what_is_not_there() -> None:
    axes = drawn(figures.sparsity, report()).axes[0]
    assert labels(axes) == (["q_proj", "up_proj"], ["0", "1"])
    assert cells(axes) == ["25", "75", "40"]  # up_proj of layer 0 does not exist: 160 of 400 in layer 1
    assert [patch.get_hatch() for patch in axes.patches] == [None, None, "////", None]


def test_colours_of_equal_sparsities_do_not_stretch_over_nothing() -> None:
    same = PruningReport(matrices=[MatrixFacts(f"m.{b}.q", b, "q", (10, 10), 50, 50) for b in range(3)])
    bar = drawn(figures.sparsity, same).axes[-1]
    assert bar.get_ylim() == (45.0, 55.0)


def test_overlap_has_a_panel_for_each_pair_and_weighs_experts_by_their_size() -> None:
    general, languages, _ = drawn(figures.overlap, report()).axes
    assert cells(general) == ["0.75", "0.25", "0.80"]  # (0.5 x 100 + 0.9 x 300) / 400
    assert cells(languages) == ["0.50", "1.00"]
    assert general.get_title(loc="left") == "Removed by general and by domain text alone"
    assert labels(general)[0] == ["q_proj", "up_proj", "ffn_neuron"]


def test_kept_units_are_counted_by_layer() -> None:
    neurons, layers = drawn(figures.kept_units, report()).axes
    assert cells(neurons) == ["9", "7"]
    assert neurons.get_title(loc="left") == "16 of 24 feed-forward neurons kept"
    assert [bar.get_height() for bar in neurons.patches] == [12, 12, 9, 7]
    assert layers.get_title(loc="left") == "2 of 3 layers kept"
    assert [bar.get_height() for bar in layers.patches] == [1, 1, 1, 1, 0, 1]


def test_scores_are_the_quantiles_of_the_report() -> None:
    axes, layers = drawn(figures.scores, report()).axes
    boxes = [(bar.get_y(), bar.get_height()) for bar in axes.patches]
    assert boxes == [(1.0, 3.0), (1.0, 3.0)]
    whiskers, medians, cuts = ([segment[:, 1].tolist() for segment in c.get_segments()] for c in axes.collections)
    assert (whiskers, medians, cuts) == ([[0.1, 40.0]] * 2, [[2.0, 2.0]] * 2, [[0.5, 0.5], [0.7, 0.7]])
    assert axes.get_yscale() == "log"  # from 0.1 to 40 are more than two decades
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in layers.patches] == [
        (pytest.approx(0.0), 0.4),
        (pytest.approx(2.0), 0.2),
        (pytest.approx(1.0), 0.1),
    ]
    assert [text.get_text() for text in layers.get_legend().get_texts()] == ["kept", "removed"]


def test_stand_ins_are_counted_into_a_histogram() -> None:
    (axes,) = drawn(figures.stand_ins, report()).axes
    assert sum(bar.get_height() for bar in axes.patches) == 4
    assert axes.get_legend().get_texts()[0].get_text() == "median 3.00 bits"
    assert axes.get_title(loc="left") == "What 4 removed neurons share with their stand-ins"


def recovered(method: str, points: list[LossPoint], kept: int = 0) -> PruningReport:
    return PruningReport(recovery=RecoveryFacts(config={"method": method}, curve=points, kept_step=kept))


def test_the_loss_curve_joins_what_was_measured_and_marks_the_step_that_was_kept() -> None:
    points = [LossPoint(0, None, 3.5), LossPoint(10, 2.5), LossPoint(20, 2.0, 2.75)]
    (axes,) = drawn(figures.loss_curve, recovered("adapter", points, kept=20)).axes
    training, held, kept = axes.lines
    assert training.get_xydata().tolist() == [[10, 2.5], [20, 2.0]]
    assert held.get_xydata().tolist() == [[0, 3.5], [20, 2.75]]
    assert (kept.get_xdata(), kept.get_label()) == ([20, 20], "kept: step 20")
    assert drawn(figures.loss_curve, recovered("adapter", [])) is None
    assert drawn(figures.loss_curve, PruningReport()) is None


def test_block_errors_stand_side_by_side_where_there_was_something_to_fit() -> None:
    points = [LossPoint(0, 0.5, 0.125), LossPoint(1), LossPoint(2, 0.25, 0.0625)]
    (axes,) = drawn(figures.block_errors, recovered("reconstruct", points)).axes
    assert [bar.get_height() for bar in axes.patches] == [50, 25, 12.5, 6.25]
    assert labels(axes)[1] == ["0", "2"]
    assert drawn(figures.loss_curve, recovered("reconstruct", points)) is None
    assert drawn(figures.block_errors, recovered("adapter", points)) is None
    assert drawn(figures.block_errors, recovered("reconstruct", [LossPoint(0)])) is None


def test_every_figure_is_a_png_without_a_background_and_the_same_each_time(tmp_path: Path) -> None:
    trained, fitted = (recovered(method, [LossPoint(1, 0.5, 0.25)]) for method in ("adapter", "reconstruct"))
    whole = dataclasses.replace(report(), recovery=trained.recovery)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        drawn_now = figures.write_figures(whole, tmp_path / name)
    (other,) = figures.write_figures(fitted, tmp_path)
    assert {*drawn_now, other} == {*figures.FIGURES}
    for kind in drawn_now:
        path = tmp_path / "a" / kind.path
        assert path.read_bytes() == (tmp_path / "b" / kind.path).read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("PNG", "RGBA")
            assert image.width == round(drawing.WIDTH * drawing.DPI)
            corners = [image.getpixel((x, y))[3] for x in (0, image.width - 1) for y in (0, image.height - 1)]
            assert corners == [0, 0, 0, 0]
            assert max(image.getchannel("A").tobytes()) == 255


def contrast(one: Any, other: Any) -> float:
    """WCAG 2 contrast of two colours."""
    low, high = sorted(drawing.luminance(matplotlib.colors.to_rgb(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", [WHITE, DARK], ids=["white", "dark"])
def test_everything_stands_out_from_the_page(page: tuple[float, float, float]) -> None:
    assert contrast("white", "black") == pytest.approx(21)
    assert contrast(drawing.INK, page) > 3.8
    assert min(contrast(colour, page) for colour in (drawing.BLUE, drawing.ORANGE)) > 2.9
    assert min(contrast(colour, page) for colour in drawing.SCALE) > 1.5


def test_numbers_stand_out_from_their_cells() -> None:
    for share in range(11):
        matrix = [MatrixFacts("m.0.q", 0, "q", (10, 10), 10 * share, 10 * share)]
        full = [MatrixFacts("m.1.q", 1, "q", (10, 10), 100, 100), MatrixFacts("m.2.q", 2, "q", (10, 10), 0, 0)]
        axes = drawn(figures.sparsity, PruningReport(matrices=matrix + full)).axes[0]
        assert contrast(axes.texts[0].get_color(), axes.patches[0].get_facecolor()) > 3.5


def test_drawing_leaves_the_programs_own_style_alone() -> None:
    before = dict(matplotlib.rcParams)
    drawn(figures.sparsity, report())
    assert dict(matplotlib.rcParams) == before


def test_names_with_signs_are_drawn_as_they_stand(tmp_path: Path) -> None:
    odd = MatrixFacts("m.0.$x$", 0, "$x_{$", (2, 2), 1, 1, overlap={"a$b/c$d": 1.0})
    assert len(figures.write_figures(PruningReport(matrices=[odd]), tmp_path)) == 2


def test_a_long_label_is_cut_in_its_middle() -> None:
    assert drawing.short("short") == "short"
    cut = drawing.short("a" * 50 + "z" * 50)
    assert len(cut) <= drawing.LONGEST_LABEL
    assert cut.startswith("aaa")
    assert cut.endswith("zzz")


def test_a_report_without_a_thing_to_show_has_no_figures_and_loses_earlier_ones(tmp_path: Path) -> None:
    figures.write_figures(report(), tmp_path)
    (tmp_path / "figures" / "mine.png").write_text("mine")
    only = PruningReport(matrices=[MatrixFacts("m.0.q", 0, "q", (2, 2), 1, 1)])
    assert [kind.file for kind in figures.write_figures(only, tmp_path)] == ["sparsity.png"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["mine.png", "sparsity.png"]
    assert figures.write_figures(PruningReport(), tmp_path) == figures.figures_in(tmp_path) == []


def test_a_card_shows_the_figures_that_are_there(tmp_path: Path) -> None:
    model = tiny_model()
    folder = save(model, tmp_path / "out", report=prune_by_hand(model))
    text = (folder / "README.md").read_text()
    assert "![Sparsity by layer and type of matrix](figures/sparsity.png)" in text
    assert text.index("## What was removed") < text.index("figures/sparsity.png") < text.index("## How it was made")
    assert (folder / "figures" / "sparsity.png").is_file()
    assert [kind.path for kind in figures.FIGURES if kind.path in text] == ["figures/sparsity.png"]
    report = PruningReport.load(folder)
    report.recovery = RecoveryFacts(config={"method": "adapter"})
    everything = render_card(report, figures=figures.FIGURES)
    assert all(f"]({kind.path})\n\n*{kind.caption}*" in everything for kind in figures.FIGURES)


def test_card_draws_the_figures_anew(tmp_path: Path) -> None:
    model = tiny_model()
    folder = save(model, tmp_path / "out", report=prune_by_hand(model))
    before = (folder / "figures" / "sparsity.png").read_bytes()
    (folder / "figures" / "sparsity.png").unlink()
    (folder / "figures").rmdir()
    rewrite_card(folder, None)
    assert (folder / "figures" / "sparsity.png").read_bytes() == before


def test_without_matplotlib_a_model_is_saved_and_a_word_is_said(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from hubprune.cli import main\n"
        "from hubprune.saving import save\n"
        "from tests.pruned import prune_by_hand, tiny_model\n"
        "model = tiny_model()\n"
        f"folder = save(model, {str(tmp_path / 'out')!r}, report=prune_by_hand(model))\n"
        "print('figures/' in Path(folder, 'README.md').read_text(), Path(folder, 'figures').exists())\n"
        "sys.exit(main(['compare', 'a', 'b']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "False False\n"), done.stderr
    assert 'The card has no figures: matplotlib draws them (pip install "hubprune[figures]").' in done.stderr
    assert done.stderr.endswith(
        'error: figures are drawn by matplotlib, which is not installed: pip install "hubprune[figures]"\n'
    )


def test_a_figure_that_cannot_be_written_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(OutputError, match="cannot make the folder .*figures"):
        figures.write_figures(report(), tmp_path)
    monkeypatch.setattr(drawing, "has_matplotlib", lambda: False)
    with pytest.raises(UsageError, match=r"pip install \"hubprune\[figures\]\""):
        drawn(figures.sparsity, report())


def test_drawing_needs_neither_torch_nor_a_display() -> None:
    code = (
        "import sys, tempfile\n"
        "from hubprune.facts import MatrixFacts\n"
        "from hubprune.figures import write_figures\n"
        "from hubprune.report import PruningReport\n"
        "before = 'matplotlib' in sys.modules\n"
        "write_figures(PruningReport(matrices=[MatrixFacts('m', 0, 'q', (2, 2), 1, 1)]), tempfile.mkdtemp())\n"
        "print(before, {'torch', 'transformers', 'matplotlib.pyplot', 'tkinter'} & set(sys.modules))\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "False set()\n"
