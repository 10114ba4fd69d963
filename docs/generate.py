"""Generator of the tables in README.md and in docs: fills each region between `<!-- begin:NAME -->` and `<!-- end:NAME -->`.

python docs/generate.py            # rewrites the regions from bench/results
python docs/generate.py --check    # exits with 1 and names the pages that are not up to date
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
if str(PROJECT) not in sys.path:  # this file is run as a script
    sys.path.insert(0, str(PROJECT))

from ddvi_fast import _markdown  # noqa: E402

RESULTS = PROJECT / "bench" / "results"
PAGES = (PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md")))
REGION = re.compile(r"<!-- begin:([\w-]+) -->(.*?)<!-- end:\1 -->", re.S)
# Headings that say whose number stands in a column; the metric is that of the column before.
_OTHERS = ("paper", "released code", "Kingma et al.", "Burda et al.")
# Names of methods in the results, and shorter ones for narrow tables.
_SHORT = {
    "Gaussian (AEVB)": "Gaussian",
    "IAF (AEVB-IAF)": "IAF",
    "hierarchical IAF (H-AEVB)": "hierarchical IAF",
    "adversarial (AAEB)": "adversarial",
    "path integral (PIS)": "path integral",
    "IWAE, 10 samples": "Gaussian, IWAE loss (K = 10)",
    "diffusion (DDVI)": "diffusion",
    "diffusion, informed (DDVI)": "diffusion, informed",
}


@dataclass(frozen=True)
class Table:
    """A table of a results file: headings and cells."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, heading: str) -> int:
        """Index of the column of that heading."""
        return self.headings.index(heading)

    def cell(self, heading: str, **where: str) -> str:
        """The cell of the one row whose columns have the values of `where`."""
        (row,) = self.where(**where).rows
        return row[self.column(heading)]

    def where(self, **where: str | Sequence[str]) -> Table:
        """The rows whose columns have one of the given values."""
        wanted = {self.column(heading): (values,) if isinstance(values, str) else values for heading, values in where.items()}
        return Table(self.headings, tuple(row for row in self.rows if all(row[column] in values for column, values in wanted.items())))

    def select(self, *headings: str) -> Table:
        """Only these columns, in this order."""
        columns = [self.column(heading) for heading in headings]
        return Table(headings, tuple(tuple(row[column] for column in columns) for row in self.rows))

    def markdown(self, align: str = "l") -> str:
        """The table as Markdown."""
        return _markdown.table(self.headings, self.rows, align)


def tables(name: str) -> list[Table]:
    """All tables of a Markdown file below bench/results."""
    blocks = re.findall(r"(?:^\|.*\n?)+", (RESULTS / name).read_text(encoding="utf-8"), re.M)
    return [_parsed(block) for block in blocks]


def _parsed(block: str) -> Table:
    lines = [tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in block.strip().splitlines()]
    first, *rest = lines[0]
    headings = ["prior" if first == "" else first]
    for heading in rest:
        headings.append(f"{headings[-1]}, {heading}" if heading in _OTHERS else heading)
    return Table(tuple(headings), tuple(lines[2:]))


def number(cell: str) -> float:
    """The first number of a cell: the mean of `**-23.79 ± 0.14**`."""
    found = re.search(r"-?\d[\d,]*\.?\d*", cell)
    if found is None:
        raise ValueError(f"no number in the cell {cell!r}")
    return float(found[0].replace(",", ""))


def ratios(values: Sequence[float]) -> str:
    """A range of ratios, such as "6 to 7"; "-" without any."""
    if not values:
        return "-"
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


# Results


def digits(name: str = "digits/table.md") -> Table:
    """A digits table with short names of methods and priors."""
    (table,) = tables(name)
    return Table(table.headings, tuple((_prior(row[0]), _SHORT.get(row[1], row[1]), *row[2:]) for row in table.rows))


def digits_with_classes() -> Table:
    """The digits table of the diffusion whose classes see the model too, which was made later."""
    table = digits("digits-informed-classes/table.md")
    return Table(table.headings, tuple((row[0], f"{row[1]}, with classes", *row[2:]) for row in table.rows))


def _prior(name: str) -> str:
    return name.removesuffix("_noisy").replace("_", " ")


def digits_summary() -> str:
    """Evidence and ELBO of every method under the three priors, the best of each bold."""
    table = Table(digits().headings, (*digits().rows, *digits_with_classes().rows))
    names = list(dict.fromkeys(row[0] for row in table.rows))
    methods = list(dict.fromkeys(row[1] for row in table.rows))
    headings = ["posterior", *(f"evidence, {name}" for name in names), *(f"ELBO, {name}" for name in names)]
    columns = [
        _best([table.cell(metric, prior=name, method=method) for method in methods]) for metric in ("evidence", "ELBO") for name in names
    ]  # fmt: skip
    return _markdown.table(headings, list(zip(methods, *columns, strict=True)), "lr")


def _best(cells: Sequence[str]) -> list[str]:
    """Cells of a column of which more is better, with the best of them bold."""
    plain = [cell.strip("*") for cell in cells]
    most = max(number(cell) for cell in plain if cell != "-")
    return [f"**{cell}**" if cell != "-" and number(cell) == most else cell for cell in plain]


def digits_cost() -> str:
    """CPU seconds of the diffusion, blind and informed, relative to the Gaussian, under the priors for which both are finished."""
    table = digits()
    priors = dict.fromkeys(row[0] for row in table.rows)
    methods = ("diffusion", "diffusion, informed")
    cells = [[table.cell("CPU seconds", prior=prior, method=name) for name in (method, "Gaussian")] for prior in priors for method in methods]
    return ratios([number(ours) / number(gaussian) for ours, gaussian in cells if "-" not in (ours, gaussian)])


def gaussian_or_diffusion() -> str:
    """Bound, gap and cost of the Gaussian and of both diffusions under the three priors."""
    methods = ("Gaussian", "diffusion", "diffusion, informed")
    pair = digits().where(method=methods).select("prior", "method", "evidence", "ELBO", "gap", "latent NLL", "CPU seconds")
    return _markdown.table(pair.headings, [[cell.strip("*") for cell in row] for row in pair.rows], "llr")


def digits_coordinates() -> str:
    """Validation bound of every method in every coordinate system, the best one bold."""
    (table,) = tables("digits/choices.md")
    return _markdown.table(table.headings[1:-1], [(_SHORT.get(row[1], row[1]), *row[2:-1]) for row in table.rows], "llr")


def study(name: str, *headings: str, number: int = 0) -> Callable[[], str]:
    """A region: columns of a table of the results."""

    def region() -> str:
        table = tables(name)[number]
        return (table.select(*headings) if headings else table).markdown()

    return region


def fixed_decoder_found() -> str:
    """What the informed chain in an updated frame is short of, beside the posteriors that say how much of it is due to what."""
    (table, _), chain, alone = tables("fixed-decoder/table.md"), "diffusion, informed, updated frame", "Gaussian of the updated frame, untrained"
    gaps = {row[0]: f"{number(row[table.column('gap')]):.2f}" for row in table.rows}
    effective, seconds, untrained = (
        table.cell(name, posterior=posterior) for name, posterior in (("ESS", chain), ("CPU seconds", chain), ("ESS", alone))
    )
    others = {name: float(gap) for name, gap in gaps.items() if name not in (chain, alone) and not name.endswith("per image")}
    best = min(others, key=lambda name: others[name])
    full = "full Gaussian, optimized per image"
    return (
        f"After {seconds} CPU seconds of training the informed chain in an updated frame is {gaps[chain]} nats short of the evidence, with"
        f" {effective} effective samples. The best amortized posterior without frame updates, with as many seconds and passes or more, is"
        f" {gaps[best]} nats short ({best}); the Gaussian of the updated frame, which needs no training, {gaps[alone]} ({untrained} effective"
        f" samples); a full Gaussian optimized for each image {gaps[full]}."
    )


# Speed


def timing(name: str, case: str, label: str, machine: str) -> list[str]:
    """A row of the table of speed: times of every provider for one case, and the ratio of ours to eager and to compiled PyTorch."""
    table = tables(name)[_cases(name)].select("case", "provider", "ms (p20 to p80)", "x eager", "x compiled").where(case=case)
    cells = {provider: [cell.split(" ")[0] for cell in rest] for _, provider, *rest in table.rows}
    times = [f"{cells[provider][0]} ms" if provider in cells else "-" for provider in ("eager", "compiled", "ours", "ours_bf16")]
    return [label, machine, *times, *cells["ours"][1:]]


def _cases(name: str) -> int:
    return next(index for index, table in enumerate(tables(name)) if table.headings[0] == "case")


def speed() -> str:
    """Five rows: the steps of training and two operations."""
    cpu, gpu = "targets-cpu.md", "device-nvidia-h200.md"
    rows = [
        timing(cpu, "training N=128 T=40 forward+backward", "training step, batch 128, T = 40", "CPU, 2 threads"),
        timing(
            cpu, "semisupervised N=1024 T=100 classes=10 forward+backward", "semi-supervised step, batch 1,024, T = 100, 10 classes", "CPU, 2 threads"
        ),
        timing(cpu, "kde N=128 M=10000 D=2 forward+backward", "kernel density, 128 x 10,000", "CPU, 2 threads"),
        timing(gpu, "training N=128 T=40 forward+backward", "training step, batch 128, T = 40", "NVIDIA H200"),
        timing(gpu, "mmd N=10000 M=10000 P=784 forward", "MMD, 10,000 x 10,000 images", "NVIDIA H200"),
    ]
    headings = ("operation", "machine", "PyTorch eager", "torch.compile", "ours", "ours, bf16", "x eager", "x compile")
    return _markdown.table(headings, rows, "llr")


def timings(name: str) -> Callable[[], str]:
    """A region: all cases of a benchmark, without rates."""

    def region() -> str:
        table = tables(name)[_cases(name)]
        return table.select("case", "provider", "ms (p20 to p80)", "x eager", "x compiled", "peak memory").markdown("llr")

    return region


def slower(name: str) -> Callable[[], str]:
    """A region: the cases in which ours is slower than eager or compiled PyTorch."""

    def region() -> str:
        table = tables(name)[_cases(name)].select("case", "provider", "ms (p20 to p80)", "x eager", "x compiled")
        lost = [row for row in table.rows if row[1].startswith("ours") and any(re.match(r"0\.\d", cell) for cell in row[3:])]
        return _markdown.table(table.headings, lost, "llr")

    return region


def header(name: str) -> Callable[[], str]:
    """A region: the lines of a results file that say machine, versions and commit."""

    def region() -> str:
        lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines[1 : next(index for index, line in enumerate(lines) if line.startswith("|"))] if line)

    return region


def device_about(name: str = "device-nvidia-h200.json") -> str:
    """The machine, versions and commit of a device check."""
    record = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    versions = ", ".join(f"{library} {record['versions'][library]}" for library in ("torch", "triton"))
    return (
        f"{record['device']}, {record['threads']} threads, {versions}; `{record['command']}`, commit {record['commit'][:10]}, {record['time'][:10]}."
    )


def device_parts(name: str = "device-nvidia-h200.json") -> str:
    """The parts of a device check: cases run, passed and not run, and other outcomes."""
    parts = json.loads((RESULTS / name).read_text(encoding="utf-8"))["parts"]
    return _markdown.table(("check", "outcome"), [(title, outcome(part)) for title, part in parts.items()])


def outcome(part: dict) -> str:
    """What a part of a device check found: for comparisons the number of cases run, passed, failed and not run."""
    counted = re.match(r"(\d+) of (\d+) (agree with float64), (.*?of the largest value)", part["summary"])
    if counted is None:
        return f"{'passed' if part['ok'] else 'failed'}: {part['summary']}"
    passed, total, failed = int(counted[1]), int(counted[2]), len(part.get("failed", ()))
    parts = [f"{passed + failed} run", f"{passed} passed", *([f"{failed} failed"] if failed else [])]
    parts.append(f"{total - passed - failed} not run for lack of time")
    return f"{', '.join(parts)}; {counted[4]}"


def goals(name: str = "device-nvidia-h200.md") -> str:
    """The goals of a device check, as a list."""
    return "\n".join(line for line in (RESULTS / name).read_text(encoding="utf-8").splitlines() if line.startswith("- "))


_MNIST = ("prior", "method", "evidence", "ELBO", "gap", "IWAE", "latent NLL", "latent NLL, paper", "MMD", "KNN accuracy", "seconds")
_CIFAR = ("prior", "method", "evidence", "ELBO", "gap", "latent NLL", "latent NLL, paper", "MMD", "KNN accuracy", "seconds")
_SEMI = ("prior", "method", "accuracy", "accuracy, paper", "evidence", "ELBO", "gap", "latent NLL", "KNN accuracy", "seconds")
_RELEASED = tuple(
    f"{metric}{suffix}"
    for metric in ("evidence, prior blurred", "released ELBO", "KNN accuracy", "latent NLL", "MMD")
    for suffix in ("", ", released code")
)
_GENOMES = ("prior", "method", "NMI", "NMI, mixture", "NMI, mixture, paper", "purity", "completeness", "KNN accuracy", "CPU seconds")

REGIONS: dict[str, Callable[[], str]] = {
    "digits-summary": digits_summary,
    "digits-cost": digits_cost,
    "digits": lambda: digits().markdown(),
    "digits-with-classes": lambda: digits_with_classes().markdown(),
    "digits-coordinates": digits_coordinates,
    "gaussian-or-diffusion": gaussian_or_diffusion,
    "digits-two": study("digits_posteriors.md"),
    "mnist-kde": study("mnist-kde-10epochs/table.md", *_MNIST),
    "mnist": study("mnist/table.md", *_MNIST),
    "mnist-one-seed": study("mnist-one-seed/table.md", *_MNIST),
    "mnist-informed": study("mnist-informed/table.md", *_MNIST),
    "mnist-latent": study("mnist-10epochs/table.md", *_MNIST),
    "cifar10": study("cifar10-60epochs/table.md", *_CIFAR),
    "cifar10-semi": study("cifar10-semi-12epochs/table.md", *_SEMI),
    "mnist-semi": study("mnist-semi-5epochs/table.md", *_SEMI),
    "mnist-semi-informed": study("mnist-semi-informed/table.md", *_SEMI),
    "m2": study("m2/table.md"),
    "ablation-sleep": study("ablation-sleep-digits/table.md"),
    "timesteps": study("timesteps-digits/table.md", "prior", "method", "evidence", "ELBO", "gap", "KNN accuracy", "seconds", "CPU seconds"),
    "mnist-50": study("mnist-50/table.md", "prior", "method", "NLL", "ELBO", "decoder rows", "CPU seconds"),
    "mnist-50-seeds": study("mnist-50-seeds/table.md", "prior", "method", "NLL", "ELBO", "CPU seconds"),
    "mnist-50-omniglot": study("mnist-50-omniglot/table.md", "prior", "method", "NLL", "ELBO", "CPU seconds"),
    "ablation-released": study("ablation-released-digits/table.md"),
    "mnist-released": study("mnist-released/table.md", "method", *_RELEASED),
    "released-flow": study("released_flow.md"),
    "fixed-decoder-about": header("fixed-decoder/table.md"),
    "fixed-decoder-found": fixed_decoder_found,
    "fixed-decoder": study("fixed-decoder/table.md"),
    "fixed-decoder-evidence": study("fixed-decoder/table.md", number=1),
    "ancestry-missing-about": header("ancestry-missing/table.md"),
    "ancestry-missing": study("ancestry-missing/table.md"),
    "ancestry-missing-haploid": study("ancestry-missing/table.md", number=1),
    "genomes": study("genomes/table.md", *_GENOMES),
    "genomes-everybody": study("genomes-everybody/table.md", *_GENOMES[1:]),
    "genomes-minutes": study("genomes-minutes/table.md"),
    "two-cohorts": study("two-cohorts.md"),
    "two-cohorts-unseen": study("two-cohorts-unseen.md"),
    "demographies": study("demographies.md"),
    "pulse": study("pulse.md"),
    "own-models": study("own_models.md", "model", "posterior", "C2ST", "coverage 50 / 80 / 90 %", "worst, s.e.", "ESS", "CPU seconds"),
    "posteriordb": study("posteriordb.md", "posterior", "D", "method", "mean", "deviation", "C2ST", "ESS", "Pareto k", "within limits"),
    "sbibm-about": header("sbibm/table.md"),
    "sbibm": study("sbibm/table.md"),
    "few-simulations": study("few_simulations.md", "problem", "simulations", "variant", "C2ST", "by observation", "CPU seconds"),
    "speed": speed,
    "cpu-about": header("targets-cpu.md"),
    "cpu-timings": timings("targets-cpu.md"),
    "avx2-about": header("targets-avx2-cpu.md"),
    "avx2-timings": timings("targets-avx2-cpu.md"),
    "cpu-memory": study("targets-cpu.md", number=1),
    "gpu-about": device_about,
    "gpu-checks": device_parts,
    "gpu-timings": timings("device-nvidia-h200.md"),
    "gpu-slower": slower("device-nvidia-h200.md"),
    "gpu-goals": goals,
    "genomes-speed": timings("genomes-speed.md"),
    "genomes-components": study("genomes-components-cpu.md"),
    "precision": study("precision-cpu.md"),
    "scaling": study("scaling-cpu.md"),
    "scaling-model": study("scaling-cpu.md", number=1),
}


def filled(text: str, regions: dict[str, Callable[[], str]] = REGIONS) -> str:
    """The text with every region filled: in its line, on lines of its own, or between blank lines, as the region was before."""

    def replace(found: re.Match[str]) -> str:
        content = regions[found[1]]()
        space = re.match(r"\n{0,2}", found[2])[0]
        return f"<!-- begin:{found[1]} -->{space}{content}{space}<!-- end:{found[1]} -->"

    return REGION.sub(replace, text)


def main(arguments: Sequence[str]) -> int:
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new == text:
            continue
        stale.append(page.relative_to(PROJECT).as_posix())
        if "--check" not in arguments:
            page.write_text(new, encoding="utf-8")
    if stale:
        print(f"not up to date (run python docs/generate.py): {', '.join(stale)}" if "--check" in arguments else f"written: {', '.join(stale)}")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
