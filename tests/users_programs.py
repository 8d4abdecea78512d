"""Programs compiled as users' are, which tests/conftest.py saves the other tests: for what is exact, small or fast."""

import jax

from tests.conftest import HAS_OLDER_LOOPS

# What XLA has where nothing is set.
_OPTIONS = {"xla_backend_optimization_level": 3} | ({"xla_cpu_use_fusion_emitters": True} if HAS_OLDER_LOOPS else {})


def jit_as_users(function, **options):
    """`jax.jit(function, **options)` with all of XLA's optimisations."""
    return jax.jit(function, compiler_options=_OPTIONS, **options)
