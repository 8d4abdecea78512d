"""Draws the plots of docs/loss_guide.md: losses and their gradients over the logit.

python docs/pages/loss_plots.py
"""

import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from focaljax import losses

IMAGES = pathlib.Path(__file__).parents[1] / "images"
LOGITS = jnp.linspace(-8.0, 8.0, 801)
Loss = Callable[[jax.Array, jax.Array], jax.Array]


def focal(gamma: float, alpha: float | None = None) -> Loss:
    """Returns focal loss as a function of logits and labels."""
    return lambda logits, labels: losses.sigmoid_focal_loss(logits, labels, gamma=gamma, alpha=alpha)


def main() -> None:
    """Writes the two pictures."""
    by_gamma = {f"$\\gamma$ = {gamma:g}": focal(gamma) for gamma in (0.0, 0.5, 1.0, 2.0, 5.0)}
    draw(IMAGES / "losses_by_gamma.png", by_gamma, {"background (label 0)": 0.0, "an object (label 1)": 1.0})
    relatives: dict[str, Loss] = {
        "cross entropy": focal(0.0),
        "focal": focal(2.0),
        "FL*": lambda x, y: losses.focal_loss_star(x, y, gamma=2.0, beta=1.0),
        "poly-1": lambda x, y: losses.poly1_focal_loss(x, y, gamma=2.0, epsilon=1.0),
        "asymmetric": losses.asymmetric_focal_loss,
        "quality focal": lambda x, y: losses.quality_focal_loss(x, y, beta=2.0),
        "varifocal": lambda x, y: losses.varifocal_loss(x, y, alpha=0.75, gamma=2.0),
    }
    labels = {"background (label 0)": 0.0, "an object (label 1)": 1.0}
    draw(IMAGES / "losses_relatives.png", relatives, labels)


def draw(path: pathlib.Path, of_names: Mapping[str, Loss], labels: Mapping[str, float]) -> None:
    """Draws the losses above, their derivatives by the logit below, a column for each label."""
    figure = Figure(figsize=(9.0, 6.4), layout="constrained")
    panels = figure.subplots(2, len(labels), sharex=True, sharey="row")
    for column, (name, label) in enumerate(labels.items()):
        # Dashes of ever other lengths: some of them lie upon one another.
        for index, (loss_name, loss) in enumerate(of_names.items()):
            line = {"linewidth": 1.4, "linestyle": (0, (3 + index, index / 2)) if index else "-"}
            value = loss(LOGITS, jnp.full_like(LOGITS, label))
            of_logit = jax.vmap(jax.grad(lambda x, loss=loss, label=label: loss(x, jnp.float32(label)).sum()))(LOGITS)
            panels[0, column].plot(LOGITS, value, label=loss_name, **line)
            panels[1, column].plot(LOGITS, of_logit, **line)
        panels[0, column].set(title=name, yscale="log", ylim=(1e-8, 10))
        panels[1, column].set(xlabel="logit", ylim=(-2.0, 2.0))
        for axes in panels[:, column]:
            axes.grid(alpha=0.3)
            axes.axvline(0, color="#8888", linewidth=0.8)
    panels[0, 0].set_ylabel("loss")
    panels[1, 0].set_ylabel("its derivative by the logit")
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
