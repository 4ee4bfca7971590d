"""What pyproject.toml cannot say: a wheel takes along what stands outside of lib/ and the library reads."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("data/README.md", "data/latency/*", "data/paper/*", "data/records/**/*", "notebooks/*.ipynb")


class BuildWithShipped(build_py):
    """Copies that into prunelab/shipped, laid out as in a clone; an editable installation reads the clone itself."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for source in (path for pattern in SHIPPED for path in sorted(Path().glob(pattern)) if path.is_file()):
                target = Path(self.build_lib, "prunelab", "shipped", source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithShipped})
