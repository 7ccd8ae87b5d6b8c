"""What the toolkit offers by name shows how it is used."""

import inspect

import pytest

import lorabench.adapters as toolkit

FUNCTIONS = [name for name in toolkit.__all__ if inspect.isfunction(getattr(toolkit, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_the_toolkit_has_an_example(name):
    assert ">>> " in (getattr(toolkit, name).__doc__ or "")
