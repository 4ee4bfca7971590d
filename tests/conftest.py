"""What all tests share."""

import pytest
import torch

torch.set_num_threads(1)  # small networks are fastest so, and two threads beside a busy process crawl


def pytest_configure(config):
    config.pluginmanager.register(IgnoreStderr())


class IgnoreStderr:
    """nbval compares stderr too, where other machines' warnings and progress bars go."""

    def pytest_collectstart(self, collector):
        if collector.path.suffix == ".ipynb" and hasattr(collector, "skip_compare"):
            collector.skip_compare += ("stderr",)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
