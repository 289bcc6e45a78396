"""Run `async def` tests, each in an event loop of its own with asyncio's debug mode on."""

import asyncio
import gc
import inspect

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    asyncio.run(_without_stray_errors(test(**arguments)), debug=True)
    return True


async def _without_stray_errors(test):
    """Await the test; fail if asyncio then reports what nobody awaited or closed."""
    reports = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, report: reports.append(report))
    await test
    gc.collect()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert reports == []
