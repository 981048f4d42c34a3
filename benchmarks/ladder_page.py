"""A ladder's rows as tables, for the terminal and as ladder.md, and as a page of curves: accuracy against compute."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from ladder_jobs import Budget
from ladder_spec import PLAIN, WHOLE, Ladder, Recipe

from clipx.pages import Extras, Html, line_chart, page, paragraph, section, table, write_page

Rows = Sequence[Mapping[str, object]]
Cells = list[list[str]]

STUDENT_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}
"""Student's t, 97.5%, by degrees of freedom: for two means those of the smaller sample, which is never too narrow."""
_MOST_LINES = 10
_HOW = (
    "A line is the mean of its seeds, its band their extremes. Only the end of a line is a finished run: before it the "
    "learning rate was still high. Start and evaluation are not counted."
)


@dataclass(frozen=True)
class Scores:
    """The values of one figure over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for a single seed."""
        return stdev(self.values) / sqrt(len(self.values)) if len(self.values) > 1 else None

    def shown(self) -> str:
        spread = f" ± {stdev(self.values):.1f}" if len(self.values) > 1 else ""
        return f"{self.mean:.1f}{spread}"


@dataclass(frozen=True)
class Curve:
    """A recipe's runs of one budget, point by point: the mean over the seeds that have it, and the extremes."""

    points: tuple[tuple[float, float], ...]
    """Seconds of training (or TFLOP), and the figure."""
    band: tuple[tuple[float, float, float], ...]


def sided(ladder: Ladder, side: str) -> list[tuple[str, str]]:
    """Title and SET.METRIC of the figures that recipes are chosen by, or that are reported."""
    return [(figure.title, name) for figure in ladder.figures if (name := getattr(figure, side)) is not None]


def percent(row: Mapping[str, object], name: str) -> float | None:
    """A figure of a row: a share in per cent, a loss as it is; None where the row has none."""
    text = row.get(name)
    return None if text in (None, "") else float(str(text)) * (1 if name.endswith("loss") else 100)


def of(rows: Rows, recipe: Recipe, budget: Budget) -> Rows:
    """The rows of a recipe and a budget."""
    wanted = (recipe.fingerprint, f"{budget.value:.6g}", budget.unit)
    return [row for row in rows if tuple(str(row[name]) for name in ("fingerprint", "budget", "unit")) == wanted]


def last(rows: Rows) -> Rows:
    """The last rows of their runs."""
    return [row for row in rows if row["step"] == row["steps"]]


def scores(rows: Rows, name: str) -> Scores | None:
    values = tuple(value for row in last(rows) if (value := percent(row, name)) is not None)
    return Scores(values) if values else None


def curve(rows: Rows, name: str, unit: str) -> Curve:
    """The mean curve of runs, by the order of their points; only of seeds that are done."""
    done = {row["seed"] for row in last(rows)}
    runs = [[row for row in rows if row["seed"] == seed] for seed in sorted(done, key=str)]
    points, band = [], []
    for together in zip(*runs, strict=False):
        values = [value for row in together if (value := percent(row, name)) is not None]
        if values:
            place = mean(float(str(row["tflop" if unit == "TFLOP" else "train_s"])) for row in together)
            points.append((place, mean(values)))
            band.append((place, min(values), max(values)))
    return Curve(tuple(points), tuple(band))


def reached_after(curves: Sequence[Curve], target: float) -> float | None:
    """The least compute from which a curve stays at the target to its end, linear between points; None if none does.

    A point alone does not count: single ones are above by chance.
    """
    found = []
    for one in curves:
        below = [number for number, (_, value) in enumerate(one.points) if value < target]
        if not below:
            found += [place for place, _ in one.points[:1]]
        elif below[-1] + 1 < len(one.points):
            (before, low), (place, value) = one.points[below[-1] : below[-1] + 2]
            found.append(before + (place - before) * (target - low) / (value - low))
    return min(found) if found else None


def finals(ladder: Ladder, recipes: Sequence[Recipe], budgets: Sequence[Budget], rows: Rows, side: str) -> Cells:
    """A row for each recipe and budget: seeds, what was really taken, and the figures at the end."""
    full, cells = budgets[-1], []
    for recipe in recipes:
        for budget in budgets:
            ends = last(own := of(rows, recipe, budget))
            if not ends:
                continue
            cell = [recipe.name, budget.name, str(len(ends))]
            for name, form in (("train_s", ".0f"), ("steps", ".0f"), ("prepare_s", ".0f")):
                cell.append(format(mean(float(str(row[name])) for row in ends), form))
            for _, name in sided(ladder, side):
                found = scores(own, name)
                cell.append(found.shown() if found else "")
                if side == "choose":
                    cell.append(_times_plain(ladder, recipe, budgets, rows, name) if budget == full else "")
            cells.append(cell)
    return cells


def _times_plain(ladder: Ladder, recipe: Recipe, budgets: Sequence[Budget], rows: Rows, name: str) -> str:
    """From which part of plain's compute on the recipe has plain's last figure."""
    plain = curve(of(rows, ladder.recipes[PLAIN], budgets[-1]), name, budgets[-1].unit)
    if not plain.points or recipe.name == PLAIN or name.endswith("loss"):
        return ""
    curves = [curve(of(rows, recipe, budget), name, budget.unit) for budget in budgets]
    after = reached_after(curves, plain.points[-1][1])
    return "not reached" if after is None else f"{after / plain.points[-1][0]:.2f}"


def heads(ladder: Ladder, side: str) -> list[str]:
    found = ["recipe", "budget", "seeds", "took s", "steps", "prepared s, not counted"]
    for title, _ in sided(ladder, side):
        found += [title, *(["of plain's compute"] if side == "choose" else [])]
    return found


def ablation(ladder: Ladder, budget: Budget, rows: Rows) -> Cells:
    """Each ingredient alone beside plain, and taken away from the whole: differences in points, with what they mean."""
    cells = []
    pairs = [(WHOLE, PLAIN)]
    pairs += [(f"only_{name}", PLAIN) for name in ladder.whole]
    pairs += [(WHOLE, f"without_{name}") for name in ladder.whole]
    for better, base in pairs:
        cell = [f"{better} - {base}"]
        for _, figure in sided(ladder, "choose"):
            one, other = (scores(of(rows, ladder.recipes[name], budget), figure) for name in (better, base))
            cell += [_difference(one, other)]
        if any(cell[1:]):
            cells.append(cell)
    return cells


def _difference(one: Scores | None, other: Scores | None) -> str:
    """The difference of two means with half of its 95% interval; what is within that is said to be."""
    if one is None or other is None:
        return ""
    found = f"{one.mean - other.mean:+.1f}"
    if one.error is None or other.error is None:
        return f"{found} (one seed)"
    fewer = min(len(one.values), len(other.values)) - 1
    wide = STUDENT_T.get(fewer, 2.3) * sqrt(one.error**2 + other.error**2)
    return f"{found} ± {wide:.1f}" + (" (no difference seen)" if abs(one.mean - other.mean) <= wide else "")


def markdown(columns: Sequence[str], cells: Cells) -> str:
    lines = [columns, ["---"] * len(columns), *cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def charts(ladder: Ladder, recipes: Sequence[Recipe], budgets: Sequence[Budget], rows: Rows) -> Iterator[Html]:
    """A chart for each figure and budget, with a line for each recipe."""
    unit = "TFLOP" if budgets[-1].unit == "TFLOP" else f"seconds of training ({ladder.clock})"
    for title, figure in sided(ladder, "choose"):
        for budget in reversed(budgets):
            curves = {recipe.name: curve(of(rows, recipe, budget), figure, budget.unit) for recipe in recipes}
            lines = {name: line for name, line in curves.items() if line.points}
            if len(lines) > _MOST_LINES:  # as those of an ablation: the table says it better
                lines = {name: line for name, line in lines.items() if name in (PLAIN, WHOLE)}
            if lines:
                yield line_chart(
                    {name: line.points for name, line in lines.items()},
                    title=f"{title}, runs of {budget.name}",
                    x_label=unit,
                    y_label="loss" if figure.endswith("loss") else "%",
                    extras=Extras(bands={name: line.band for name, line in lines.items() if _is_wide(line)}),
                )


def _is_wide(line: Curve) -> bool:
    return any(low < high for _, low, high in line.band)


def write_summary(
    ladder: Ladder,
    recipes: Sequence[Recipe],
    budgets: Sequence[Budget],
    rows: Rows,
    work: Path,
    *,
    report: Sequence[str] = (),
) -> None:
    """Prints the tables, and writes them as `WORK/ladder.md` and, with the curves, `WORK/ladder.html`."""
    tables: dict[str, tuple[list[str], Cells]] = {}
    tables["What recipes are chosen by"] = (heads(ladder, "choose"), finals(ladder, recipes, budgets, rows, "choose"))
    if cells := ablation(ladder, budgets[-1], rows) if ladder.ablation else []:
        title = f"Ingredients, {budgets[-1].name}, differences in points"
        tables[title] = (["difference", *(title for title, _ in sided(ladder, "choose"))], cells)
    if report:
        wanted = [ladder.recipes[name] for name in report]
        tables["Reported: pictures that had no say"] = (
            heads(ladder, "report"),
            finals(ladder, wanted, budgets, rows, "report"),
        )
    shown = {title: content for title, content in tables.items() if content[1]}
    text = "\n".join(f"{title}\n\n{markdown(*content)}" for title, content in shown.items())
    print(text or "no run of this machine is done", flush=True)
    if not shown:
        return
    work.mkdir(parents=True, exist_ok=True)
    (work / "ladder.md").write_text(text)
    machine = f"Machine: {rows[0]['hardware']}. Rows of other machines are left out. "
    parts = [section(title, table(*content)) for title, content in shown.items()]
    lines = section("Accuracy against compute", paragraph(machine + _HOW), *charts(ladder, recipes, budgets, rows))
    write_page(work / "ladder.html", page(ladder.name, [lines, *parts], subtitle=f"equal compute: {budgets[-1].name}"))
    print(f"curves: {work / 'ladder.html'}", flush=True)
