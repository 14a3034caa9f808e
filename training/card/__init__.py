"""The model card: README.md in the artifact, with pictures, of what a person should know before using the model.

findings    what its graphs say of held-out rows
pictures    as PNG
page        as Markdown

It is made of the artifact alone, by the service's own engine, and of held-out rows where they can be had; so it can be
written for any artifact, and anew at any time. No number of it is ever used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service import artifact
from service.artifact import Artifact
from training.card import findings, page, pictures
from training.card.findings import Rows

Draw = Callable[[Artifact, findings.Findings], bytes | None]
PICTURES: dict[str, Draw] = {
    "card-rows.png": pictures.rows,
    "card-columns.png": pictures.columns,
    "card-latents.png": pictures.latents,
    "card-scores.png": pictures.scores,
}


def write(folder: Path, rows: Rows | None = None) -> Path:
    """Write an artifact's card into it, in place of one that is there; its path.

    rows: held-out rows, of the test split. Without them its golden rows are shown. ArtifactRefused where the folder
    isn't what its manifest says.
    """
    found = artifact.read(folder)
    seen = findings.find(found, rows)
    drawn = {name: content for name, draw in PICTURES.items() if (content := draw(found, seen))}
    text = page.write(found, seen, drawn)
    artifact.rewrite(found, {}, {artifact.CARD: text.encode(), **drawn})
    return folder / artifact.CARD
