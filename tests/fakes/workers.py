"""`service.domain.backend.Workers` that call functions at once."""

from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class InlineWorkers:
    async def text(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return function(*arguments)

    async def grammar(
        self, length: int, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        return function(*arguments)
