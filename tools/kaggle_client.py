"""What the Kaggle client would send for a folder of `gesture-nb kaggle`: its own code, without the network.

python tools/kaggle_client.py FOLDER TO

It needs an environment with the package kaggle. The uploaded files are laid out in TO as Kaggle would attach them.
"""

import json
import os
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

os.environ |= {
    "KAGGLE_USERNAME": "nobody",
    "KAGGLE_KEY": "none",
    "HOME": tempfile.mkdtemp(),
    "KAGGLE_CONFIG_DIR": tempfile.mkdtemp(),
}  # nobody's, and no file of anybody's

from kaggle.api.kaggle_api_extended import KaggleApi  # noqa: E402
from requests import HTTPError  # noqa: E402

def main(folder, to):
    sent, api, reply = {}, KaggleApi(), SimpleNamespace(error="", url="", status="ok", ref="")

    def keep(name):
        return lambda request: sent.update({name: request}) or reply

    def upload(path, quiet, *more):
        path = Path(path)
        if path.suffix == ".zip":
            zipfile.ZipFile(path).extractall(to / path.stem)
        else:
            (to / path.name).write_bytes(path.read_bytes())
        return f"token of {path.name}"

    def absent(ref):
        raise HTTPError("404")

    @contextmanager
    def client(*_, **__):
        yield SimpleNamespace(
            kernels=SimpleNamespace(kernels_api_client=SimpleNamespace(save_kernel=keep("kernel"))),
            datasets=SimpleNamespace(dataset_api_client=SimpleNamespace(create_dataset=keep("dataset"))),
        )

    api.build_kaggle_client, api._upload_blob, api.dataset_status = client, upload, absent
    api.config_values = {api.CONFIG_NAME_USER: "nobody"}
    to.mkdir(parents=True, exist_ok=True)
    api.dataset_create_new(str(folder / "dataset"), quiet=True, dir_mode="zip")
    api.kernels_push(str(folder / "notebook"))
    k, d = sent["kernel"], sent["dataset"]
    owner = f"{d.owner_slug}/{d.slug}"
    wrong = {
        "dataset is not the one that the notebook attaches": [owner] != list(k.dataset_data_sources),
        "internet is on": k.enable_internet,
        "notebook is public": not k.is_private,
        "competition is not attached": not k.competition_data_sources,
        "notebook has no cells": not json.loads(k.text)["cells"],
        "data set is public": not d.is_private,
        "data set has no files": len(d.files) != len(list(to.iterdir())),
    }
    if found := [w for w, is_so in wrong.items() if is_so]:
        sys.exit("kaggle client: the " + ", the ".join(found))
    print(
        f"kaggle client: would push {k.slug} with {owner} ({len(d.files)} uploads) "
        f"and {', '.join(k.competition_data_sources)}",
        flush=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
