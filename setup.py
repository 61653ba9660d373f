"""Packages gesture_nb from settings.ini, the one place where its facts stand."""
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

EXTRAS = ("serve", "explore", "ray", "tune", "trackers", "devices", "dev")

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


class WithoutLeftovers(build_py):
    "Copies the modules into an empty folder: one that was removed since the last build would get into the wheel."

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / cfg["lib_path"], ignore_errors=True)
        super().run()


def with_whole_links(text):
    "Markdown whose links to files of the project hold outside it."
    text = re.sub(r"\]\((?!#|[a-z]+:)([^)]+\.png)\)", rf"]({cfg['git_url']}/raw/{cfg['branch']}/\1)", text)
    return re.sub(r"\]\((?!#|[a-z]+:)([^)]+)\)", rf"]({cfg['git_url']}/blob/{cfg['branch']}/\1)", text)


setup(
    cmdclass={"build_py": WithoutLeftovers},
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=with_whole_links((here / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: {version}" for version in cfg["python_versions"].split()),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    project_urls={
        "Homepage": cfg["git_url"],
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
        "Issues": f"{cfg['git_url']}/issues",
    },
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={cfg["lib_path"]: ["py.typed", "explorer/*.html", "explorer/*.css", "explorer/*.js"]},
    include_package_data=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in EXTRAS},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
