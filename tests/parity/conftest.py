import functools

import pytest


@pytest.fixture(scope="module", autouse=True)
def forget_what_the_module_computed(request):
    """Whole networks in float64 with their gradients take gigabytes."""
    yield
    for value in vars(request.module).values():
        if isinstance(value, functools._lru_cache_wrapper):
            value.cache_clear()
