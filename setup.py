"""A wheel holds the pipeline and the named studies too: `attnopt init` and `attnopt study` read them from it."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithProject(build_py):
    """Puts them where attnopt/tools/shipped.py looks; an editable install reads the checkout's own."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        project = Path(self.build_lib) / "attnopt" / "assets" / "project"
        (project / "studies").mkdir(parents=True, exist_ok=True)
        for file in (Path("dvc.yaml"), *Path("studies").glob("*.yaml")):
            self.copy_file(str(file), str(project / file), preserve_mode=False)


setup(cmdclass={"build_py": BuildWithProject})
