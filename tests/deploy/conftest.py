"""The chart's releases, each rendered once."""

import pytest

from tests.deploy.chart import VALUES, Release, render, values_file


@pytest.fixture(scope="session")
def releases() -> dict[str, Release]:
    """Return a release for each example of values in the chart, by its name."""
    return {name: render(values_file(path)) for name, path in VALUES.items()}


@pytest.fixture(params=sorted(VALUES))
def release(request: pytest.FixtureRequest, releases: dict[str, Release]) -> Release:
    return releases[request.param]
