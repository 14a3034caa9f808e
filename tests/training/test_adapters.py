"""Other libraries' models as the arguments of an export, held to what the libraries themselves give."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from pyod.models import vae as detectors
from pythae import models as library
from torch import Tensor, nn

from training import adapters
from training.adapters.from_pythae import SAME_DENSITY
from training.config import Unusable

torch.set_num_threads(1)
EVENT, LATENTS = (1, 4, 4), 3


def of_pythae(kind: str, **options: Any) -> Any:
    """One of pythae's models, with its own networks and fresh weights."""
    torch.manual_seed(0)
    config = getattr(library, f"{kind}_Config" if kind in ("INFOVAE_MMD", "VAE_IAF", "WAE_MMD") else f"{kind}Config")
    return getattr(library, kind)(config(input_dim=EVENT, latent_dim=LATENTS, **options))


def pictures(rows: int, *event: int) -> Tensor:
    """Rows of numbers from 0 to 1."""
    return torch.from_numpy(np.random.default_rng(0).random((rows, *event), np.float32))


@pytest.mark.parametrize("kind", SAME_DENSITY)
def test_a_model_of_pythae_gives_what_it_gave(kind: str) -> None:
    """The posterior and the reconstruction are the library's own, from a copy: the model is left in training mode."""
    model, x = of_pythae(kind, reconstruction_loss="bce").train(), pictures(5, *EVENT)
    found = adapters.pythae(model)
    own = model.encoder(x)
    mean, log_variance = found["encoder"](x)
    assert torch.equal(mean, own.embedding)
    assert torch.equal(log_variance, own.log_covariance)
    assert torch.equal(found["decoder"](mean), model.decoder(mean).reconstruction)
    assert (found["encoder_gives"], found["decoder_gives"]) == ("log_variance", "probabilities")
    assert found["likelihood"] == "bernoulli"
    assert f"pythae {kind}" in found["description"]
    assert model.training
    assert not found["encoder"].training
    assert ("prior" in found) == (kind == "VAMP")


def test_a_squared_error_is_a_normal_without_a_scale() -> None:
    """It is a mean and nothing else, unless a scale is stated; with a Bernoulli there is none to state."""
    squared = of_pythae("BetaVAE", beta=4.0)
    found = adapters.pythae(squared)
    assert (found["likelihood"], found["decoder_gives"], "scale" in found) == ("normal", "mean", False)
    assert "β = 4" in found["description"]
    assert adapters.pythae(squared, scale=1.0)["scale"] == 1.0
    with pytest.raises(Unusable, match="'bce' has no scale; leave it out"):
        adapters.pythae(of_pythae("VAE", reconstruction_loss="bce"), scale=1.0)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("AE", r"it has no posterior q\(z\|x\) with a density"),
        ("WAE_MMD", r"it has no posterior q\(z\|x\) with a density"),
        ("VAEGAN", "what it reconstructs by is no likelihood"),
        ("VAE_IAF", "its posterior is what a flow makes of a normal"),
        ("SVAE", "its latents lie in a curved space"),
    ],
)
def test_a_model_without_an_honest_score_is_refused(kind: str, why: str) -> None:
    """With the reason, and what to train instead."""
    with pytest.raises(Unusable, match=f"pythae {kind}: {why}"):
        adapters.pythae(of_pythae(kind))


def test_a_model_without_weights_is_refused_with_how_to_load_them() -> None:
    """The meta device has shapes alone."""
    with pytest.raises(Unusable, match=r"meta device.*load_state_dict"):
        adapters.pythae(of_pythae("VAE", reconstruction_loss="bce").to("meta"))


def test_a_class_of_your_own_is_refused_until_you_say_what_it_is() -> None:
    """A subclass may have changed the density; a module of another library is none of pythae's models."""

    class Mine(library.VAE):  # type: ignore[misc]  # pythae has no types
        pass

    with pytest.raises(Unusable, match=r"Mine: a class that we don't know .* call training.export with its encoder"):
        adapters.pythae(Mine(library.VAEConfig(input_dim=EVENT, latent_dim=LATENTS)))
    Mine.__name__ = "VAE"
    with pytest.raises(Unusable, match="pythae VAE: a class that we don't know"):
        adapters.pythae(Mine(library.VAEConfig(input_dim=EVENT, latent_dim=LATENTS)))
    with pytest.raises(Unusable, match=r"pythae: one of pythae.models is needed, not torch.nn.modules.linear.Linear"):
        adapters.pythae(nn.Linear(1, 1))


def small(**options: Any) -> AutoencoderKL:
    """A random AutoencoderKL of two resolutions with attention between, for pictures of 3 × 8 × 8."""
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 8),
    }
    return AutoencoderKL(**blocks, latent_channels=2, norm_num_groups=2, sample_size=8, **options).eval()


SCALINGS: list[dict[str, Any]] = [
    {},
    {"shift_factor": 0.3},
    {"latents_mean": [0.1, -0.2], "latents_std": [0.5, 2.0], "scaling_factor": 1.5},
]


@pytest.mark.parametrize("options", SCALINGS, ids=["factor", "shift", "each channel"])
def test_an_autoencoder_of_diffusers_gives_what_it_gave(options: dict[str, Any]) -> None:
    """Its latents as a pipeline has them, and back; the model keeps its tiling, its attention and its weights."""
    vae, x = small(**options), 2.0 * pictures(3, 3, 8, 8) - 1.0
    vae.enable_tiling()
    processors = dict(vae.attn_processors)
    found = adapters.diffusers(vae)
    q = vae.encode(x).latent_dist
    wanted = vae.config
    if "latents_mean" in options:  # as diffusers' pipelines undo it: z·std/scaling_factor + mean
        back = torch.tensor(wanted.latents_std) / wanted.scaling_factor, torch.tensor(wanted.latents_mean)
    else:
        back = torch.tensor(1 / wanted.scaling_factor), torch.tensor(wanted.shift_factor or 0.0)
    width, shift = (value.reshape(-1, 1, 1) for value in back)
    mean, log_variance = found["encoder"](x)
    torch.testing.assert_close(mean * width + shift, q.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.exp(0.5 * log_variance) * width, q.std, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["decoder"](mean), vae.decode(q.mean).sample, atol=1e-5, rtol=1e-4)
    assert vae.use_tiling
    assert dict(vae.attn_processors) == processors


def test_latents_may_stay_as_the_autoencoder_has_them() -> None:
    """Unscaled, the posterior is the library's own."""
    vae, x = small(shift_factor=0.3), 2.0 * pictures(3, 3, 8, 8) - 1.0
    found, q = adapters.diffusers(vae, scaled=False), vae.encode(x).latent_dist
    mean, log_variance = found["encoder"](x)
    torch.testing.assert_close((mean, log_variance), (q.mean, q.logvar), atol=1e-5, rtol=1e-4)
    assert (found["likelihood"], "preprocessing" in found) == ("normal", False)
    with pytest.raises(Unusable, match=r"diffusers: an AutoencoderKL is needed, not torch.nn.modules.linear.Linear"):
        adapters.diffusers(nn.Linear(1, 1))


@pytest.fixture(scope="module")
def detector() -> detectors.VAE:
    """PyOD's VAE, fitted for a moment to four columns of unlike units."""
    rows = np.random.default_rng(0).normal([0, 100, -5, 1e4], [1, 20, 0.1, 1e3], (200, 4))
    return detectors.VAE(epoch_num=2, encoder_neuron_list=[8], decoder_neuron_list=[8], latent_dim=2, verbose=0).fit(
        rows
    )


def test_a_detector_of_pyod_gives_what_it_gave(detector: detectors.VAE) -> None:
    """Its posterior and its reconstruction in its own standardised units, its draws' clip included."""
    found = adapters.pyod(detector)
    units = found["preprocessing"]
    assert np.array_equal(units["shift"], detector.X_mean)
    assert np.allclose(units["scale"], detector.X_std)
    u = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32))
    mean, log_variance = detector.model.encode(u)
    assert all(map(torch.equal, found["encoder"](u), (mean, log_variance)))
    assert torch.equal(found["decoder"](mean), detector.model.decode(mean))
    far = found["encoder"](1e6 * u)[1]
    assert far.min() >= -30.0
    assert far.max() <= 20.0
    assert (found["likelihood"], found["decoder_gives"], "scale" in found) == ("normal", "mean", False)
    assert "no KL" in found["description"]  # capacity = 0 clamps it away


def test_a_detector_that_is_not_fitted_is_refused() -> None:
    """There is nothing to export, and PyOD's other detectors have no density."""
    from pyod.models.auto_encoder import AutoEncoder

    with pytest.raises(Unusable, match=r"isn't fitted; call .fit\(rows\) on it first"):
        adapters.pyod(detectors.VAE())
    with pytest.raises(Unusable, match=r"pyod: a pyod.models.vae.VAE is needed, not pyod.models.auto_encoder"):
        adapters.pyod(AutoEncoder())


class Mine(lightning.LightningModule):
    """Somebody's VAE in Lightning."""

    def __init__(self, latents: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder, self.decoder = nn.Linear(4, 2 * latents), nn.Linear(latents, 4)

    def training_step(self, x: Tensor) -> Tensor:
        """An autoencoder will do."""
        loss: Tensor = ((self.decoder(self.encoder(x)[:, :2]) - x) ** 2).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters())


@pytest.fixture(scope="module")
def fitted_mine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mine, Path]:
    """A module after an epoch, and the checkpoint that Lightning wrote of it."""
    folder, module = tmp_path_factory.mktemp("lightning"), Mine()
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=folder, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, torch.utils.data.DataLoader(torch.rand(8, 4), 4))  # type: ignore[arg-type]  # rows will do
    trainer.save_checkpoint(folder / "mine.ckpt")
    return module, folder / "mine.ckpt"


def test_a_lightning_checkpoint_gives_its_weights(fitted_mine: tuple[Mine, Path], tmp_path: Path) -> None:
    """Into a fresh module, ready to be exported; what torch.compile put before the names is taken off."""
    module, path = fitted_mine
    fresh = adapters.lightning(path, into=Mine().train())
    assert all(map(torch.equal, fresh.state_dict().values(), module.state_dict().values()))
    assert not fresh.training
    compiled = {f"encoder._orig_mod.{name}": value for name, value in module.encoder.state_dict().items()}
    compiled |= {f"decoder.{name}": value for name, value in module.decoder.state_dict().items()}
    torch.save({"state_dict": compiled}, tmp_path / "compiled.ckpt")
    assert torch.equal(
        adapters.lightning(tmp_path / "compiled.ckpt", into=Mine()).encoder.weight, module.encoder.weight
    )


class Trap:
    """What runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_never_run(fitted_mine: tuple[Mine, Path], tmp_path: Path) -> None:
    """A pickle that makes a folder when it is opened makes none, and the message says what to do."""
    module, _ = fitted_mine
    sprung = tmp_path / "sprung"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": Trap(sprung)}, tmp_path / "trap.ckpt")
    with pytest.raises(
        Unusable, match=r"trap.ckpt: holds more than tensors and plain values, and nothing of that kind"
    ):
        adapters.lightning(tmp_path / "trap.ckpt", into=Mine())
    assert not sprung.exists()
    torch.load(tmp_path / "trap.ckpt", weights_only=False)  # that it would have
    assert sprung.exists()


def test_a_checkpoint_that_does_not_fit_says_why(
    fitted_mine: tuple[Mine, Path], run_folder: Path, tmp_path: Path
) -> None:
    """Of another module, of no module, of our own trainer, or no checkpoint at all."""
    _, path = fitted_mine
    with pytest.raises(Unusable, match=r"isn't of a Mine made as this one is: .*size mismatch for encoder.weight"):
        adapters.lightning(path, into=Mine(latents=3))
    with pytest.raises(Unusable, match=r"is a checkpoint of this trainer; say python -m training export .*tiny"):
        adapters.lightning(run_folder / "best.ckpt", into=Mine())
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(Unusable, match="holds a list, and a dict with a state_dict is needed"):
        adapters.lightning(tmp_path / "list.ckpt", into=Mine())
    torch.save({"epoch": 1}, tmp_path / "epoch.ckpt")
    with pytest.raises(Unusable, match="holds no state_dict"):
        adapters.lightning(tmp_path / "epoch.ckpt", into=Mine())
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(Unusable, match=r"text.ckpt: "):
        adapters.lightning(tmp_path / "text.ckpt", into=Mine())
    with pytest.raises(Unusable, match="No such file"):
        adapters.lightning(tmp_path / "none.ckpt", into=Mine())
