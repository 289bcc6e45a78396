"""`async def` tests run here as those of the transport do."""

from tests.transport.conftest import pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]
