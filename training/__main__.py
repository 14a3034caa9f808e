"""The command line: fit → export → calibrate, each telling what it did and what comes next. Knows no mathematics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.console import Console

from service.errors import ArtifactRefused
from training.config import Unusable

app = typer.Typer(
    help="Fit a VAE on data, export it to an artifact that the service serves, and calibrate its scores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False, soft_wrap=True)

Config = Annotated[Path, typer.Argument(help="A run, in YAML.", metavar="CONFIG")]
RunFolder = Annotated[Path, typer.Argument(help="A fitted run's folder.", metavar="RUN")]
ArtifactFolder = Annotated[Path, typer.Argument(help="<models>/<name>/<version>.", metavar="ARTIFACT")]
Runs = Annotated[Path, typer.Option("--runs", help="Where runs are kept.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after the last whole epoch.")]
Accelerator = Annotated[str | None, typer.Option("--accelerator", help="Lightning's: auto, cpu, cuda, …")]
Devices = Annotated[str | None, typer.Option("--devices", help="How many, auto, or which: 0,1.")]
Strategy = Annotated[str | None, typer.Option("--strategy", help="Lightning's: auto, ddp, …")]
Precision = Annotated[str | None, typer.Option("--precision", help="32-true, 64-true, 16-mixed or bf16-mixed.")]
Nodes = Annotated[int | None, typer.Option("--num-nodes", min=1, help="Machines that take part.")]
Models = Annotated[Path, typer.Option("--to", help="Where artifacts are kept.")]
Version = Annotated[int | None, typer.Option("--version", min=1, help="The next free one, unless given.")]
OwnRows = Annotated[Path | None, typer.Option("--rows", help="Of an own model: the .npy or .npz it was exported with.")]
Replace = Annotated[bool, typer.Option("--replace", help="Overwrite that version.")]


Shared = Annotated[
    bool, typer.Option("--shared-weights", help="Large matrices on disk and in memory once; see docs/large-models.md.")
]


@app.command()
def fit(
    path: Config,
    runs: Runs = Path("runs"),
    resume: Resume = False,
    accelerator: Accelerator = None,
    devices: Devices = None,
    strategy: Strategy = None,
    precision: Precision = None,
    num_nodes: Nodes = None,
) -> None:
    """Fit a run: weights, figures and a picture, in runs/<name>. What is said here goes before the run's trainer."""
    from training import batches, config
    from training import fit as fitting

    with plainly():
        which = None if devices is None else several(devices)
        where = {"accelerator": accelerator, "devices": which, "strategy": strategy, "precision": precision}
        run = config.elsewhere(config.read(path), **where, num_nodes=num_nodes)
        folder = runs / run.name
        fitted = fitting.fit(run, folder, resume=resume, console=console)
        if batches.place()[0] > 0:
            return  # the first process tells
        last = fitted.figures[-1]
        console.print(
            f"Kept epoch {len(fitted.figures)}: held-out bound {fitting.held_out(last):.2f} nats a row "
            f"(log-likelihood {last['log_likelihood']:.2f}, KL {last['kl']:.2f})"
        )
        console.print(f"Look at  {folder / fitting.PICTURE}")
        console.print(f"Then     python -m training export {folder}")


@app.command("data")
def look(path: Annotated[Path, typer.Argument(help="CSV, Parquet, npy, npz, IDX, or a folder of pictures.")]) -> None:
    """Show what a file or folder holds: the guessed role of each column, and a config to paste."""
    from rich.table import Table

    from training import look as looking

    with plainly():
        seen = looking.look(path)
        shown = Table(*seen.heads, title=seen.title, title_justify="left", show_header=any(seen.heads))
        for line in seen.lines:
            shown.add_row(*line)
        console.print(shown)
        console.print("A config to begin with; what is wrong in it is yours to change:\n")
        console.print(seen.config, markup=False, end="")


@app.command()
def export(
    run: RunFolder,
    to: Models = Path("exported_models"),
    version: Version = None,
    replace: Replace = False,
    shared_weights: Shared = False,
) -> None:
    """Export a fitted run to an artifact, and hold it to its promises."""
    from training import exporting
    from training import fit as fitting

    with plainly():
        fitted = fitting.load(run)
        with console.status("exporting") as status:
            folder = exporting.export(
                fitted, to, version=version, replace=replace, shared_weights=shared_weights, say=status.update
            )
        console.print(f"Wrote    {folder} ({sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB)")
        console.print(f"Then     python -m training calibrate {folder}")


@app.command()
def import_onnx(
    encoder: Annotated[Path, typer.Argument(help="x → mean and log variance, in ONNX.", metavar="ENCODER")],
    decoder: Annotated[Path, typer.Argument(help="z → the family's parameters, in ONNX.", metavar="DECODER")],
    likelihood: Annotated[str, typer.Option("--likelihood", help="A family, as in docs/likelihoods.md.")],
    rows: Annotated[Path, typer.Option("--sample", help="Rows that it wasn't trained on, .npy; or four splits, .npz.")],
    name: Annotated[str, typer.Option("--name", help="What it is served as.")],
    encoder_gives: Annotated[
        str | None, typer.Option("--encoder-gives", help="log_variance, log_scale, variance or scale.")
    ] = None,
    encoder_outputs: Annotated[
        str, typer.Option("--encoder-outputs", help="Names of the mean and the second output, with a comma between.")
    ] = "",
    decoder_gives: Annotated[
        str, typer.Option("--decoder-gives", help="parameters, logits, probabilities or mean.")
    ] = "parameters",
    decoder_outputs: Annotated[
        str, typer.Option("--decoder-outputs", help="Names of the parameters, in the family's order.")
    ] = "",
    scale: Annotated[
        str | None, typer.Option("--scale", help="Beside a mean: a number, shared or feature; estimated unless given.")
    ] = None,
    shift: Annotated[float, typer.Option("--shift", help="The encoder is given (x − shift)/divisor.")] = 0.0,
    divisor: Annotated[float, typer.Option("--divisor", help="The same: 255 for 8-bit pixels as 0 … 1.")] = 1.0,
    prior: Annotated[
        Path | None, typer.Option("--prior", help="An .npz of mean, scale, weight, or of rows: pseudo-inputs.")
    ] = None,
    features: Annotated[
        str, typer.Option("--features", help="Names of a row's numbers: with commas between, or a file of them.")
    ] = "",
    description: Annotated[str, typer.Option("--description", help="For the manifest.")] = "",
    shared_weights: Shared = False,
    to: Models = Path("exported_models"),
    version: Version = None,
    replace: Replace = False,
) -> None:
    """Make an artifact of an encoder and a decoder in ONNX files from anywhere, and calibrate it."""
    from training.own import files

    with plainly():
        with console.status("looking at the files") as status:
            folder = files.export(
                encoder,
                decoder,
                likelihood=likelihood,
                sample=rows,
                encoder_gives=encoder_gives,
                encoder_outputs=listed(encoder_outputs),
                decoder_gives=decoder_gives,
                decoder_outputs=listed(decoder_outputs),
                units=None if (shift, divisor) == (0.0, 1.0) else {"shift": shift, "scale": divisor},
                name=name,
                scale=scale if scale in (None, "shared", "feature") else number(scale),
                prior=files.prior(prior),
                features=files.names(features),
                description=description,
                shared_weights=shared_weights,
                to=to,
                version=version,
                replace=replace,
                say=status.update,
            )
        console.print(f"Wrote    {folder}, calibrated")
        console.print(f"Then     {serving(folder)}")


@app.command()
def calibrate(folder: ArtifactFolder, rows: OwnRows = None) -> None:
    """Score held-out rows with the service's own engine, so that its scores come with p-values."""
    from training import calibrate as calibrating

    with plainly():
        with console.status("opening") as status:
            tell = lambda done, of: status.update(f"scored {done} of {of} rows")  # noqa: E731
            made = calibrating.calibrate(folder, tell, given(rows))
        console.print(
            f"Scored   {made.n} held-out rows at {made.draws} draws; the smallest p-value is {made.smallest_p:.2g}"
        )
        console.print(f"Then     {serving(folder)}")


@app.command()
def card(folder: ArtifactFolder, rows: OwnRows = None) -> None:
    """Write the artifact's model card, README.md with its pictures, anew; its graphs and scores stay as they are."""
    from service import artifact
    from training import calibrate as calibrating
    from training import card as carding

    with plainly():
        manifest, held_out = artifact.read(folder).manifest, None
        try:
            dataset = calibrating.of(manifest, given(rows))
            held_out = calibrating.held_out_rows(manifest, "test", dataset)
        except Unusable as error:
            if rows is not None:
                raise
            console.print(f"Without held-out rows, so with golden ones: {error}")
        console.print(f"Wrote    {carding.write(folder, held_out)}")


def serving(folder: Path) -> str:
    """What serves an artifact, <models>/<name>/<version>, from where its folder of models is.

    >>> serving(Path("exported_models/mine/1")), serving(Path("/srv/our models/mine/1"))
    ('make serve', "VAE_SERVE_MODELS='/srv/our models' make serve")
    """
    models = folder.absolute().parents[1]
    return (
        "make serve"
        if models == Path("exported_models").absolute()
        else f"VAE_SERVE_MODELS={quote(str(models))} make serve"
    )


def given(rows: Path | None) -> Any:
    """The sample that an own model was exported with, if a file of it is named."""
    from training.own.rows import sample

    return None if rows is None else sample(rows)


def listed(names: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(name.strip() for name in names.split(",") if name.strip())


def several(devices: str) -> int | list[int] | str:
    """How many devices, or which, as they were typed.

    >>> several("2"), several("0,1"), several("auto")
    (2, [0, 1], 'auto')
    """
    try:
        return [int(one) for one in listed(devices)] if "," in devices else int(devices)
    except ValueError:
        return devices


def number(text: str) -> float:
    """A number that was typed."""
    try:
        return float(text)
    except ValueError as error:
        raise Unusable(f"--scale {text}: a number, shared or feature") from error


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """One clear line and a status instead of a traceback: 2 for what the caller can mend, 1 for a refused artifact."""
    try:
        yield
    except Unusable as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    except OSError as error:
        typer.echo(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), err=True)
        raise typer.Exit(2) from error
    except ArtifactRefused as error:
        typer.echo(f"refused: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app(prog_name="python -m training")
