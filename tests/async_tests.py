"""Run `async def` tests, each in an event loop of its own with asyncio's debug mode on."""

import asyncio
import gc
import inspect
import itertools

import pytest

FREEZE_EVERY = 20  # tests
_numbers = itertools.count()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    if next(_numbers) % FREEZE_EVERY == 0:
        # As conftest.py does once: what tests have imported since, and pytest keeps, need not be
        # looked through after each test. That took a tenth of the whole run.
        gc.collect()
        gc.freeze()
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
