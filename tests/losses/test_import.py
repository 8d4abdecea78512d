import subprocess
import sys
import textwrap

import pytest

NOT_NEEDED = ("flax", "optax", "ml_collections", "chex", "cv2", "grain", "orbax", "tensorflow", "tensorflow_datasets")


def run(program):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("blocked", [True, False])
def test_losses_and_detection_need_nothing_but_jax(blocked):
    """With the other packages out of reach, and without loading them where they are within reach."""
    result = run(f"""
        import sys
        not_needed = {NOT_NEEDED!r}
        if {blocked}:
            sys.modules.update(dict.fromkeys(not_needed))  # None: importing it raises ImportError

        import jax.numpy as jnp
        from focaljax import detection, losses

        loss = losses.sigmoid_focal_loss_with_integer_labels(jnp.zeros((3, 2)), jnp.array([0, -1, -2]))
        losses.mean_over_positives(loss, jnp.array([True, False, False])).block_until_ready()
        anchors = detection.pyramid_anchors((8, 8), levels=(3,), sizes=(8.0,))
        assert anchors[0].shape == (9, 4)
        loaded = [name for name in not_needed if sys.modules.get(name) is not None]
        assert not loaded, f"loaded: {{loaded}}"
        rooms = [name for name in sys.modules if name.startswith("focaljax.")]
        others = [name for name in rooms if name.split(".")[1] not in ("losses", "detection")]
        assert not others, f"loaded: {{others}}"
    """)
    assert result.returncode == 0, result.stderr


def test_losses_do_not_load_detection():
    result = run("""
        import sys
        import focaljax.losses
        assert "focaljax.detection" not in sys.modules
    """)
    assert result.returncode == 0, result.stderr
