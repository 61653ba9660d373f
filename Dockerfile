# An image that runs gesture-nb on CPUs, as a user without rights. Written without a container engine at hand: its steps
# were run one by one in an empty folder, the image itself was not built.
#
#   docker build -t gesture-nb .
#   docker run --rm -v "$PWD/runs:/home/gesture/runs" gesture-nb train --data spar --out runs/spar
#
# The folder that is mounted must be writable for user 1000.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# Which torch, and further options of pip for it: where the default index has CUDA builds only, name an index of CPU builds
# with --build-arg TORCH_OPTIONS="--index-url ADDRESS".
ARG TORCH="torch>=2.10,<3"
ARG TORCH_OPTIONS=""
# Extras of the package, separated by commas.
ARG EXTRAS="serve,explore"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/gesture-nb
ENV PATH=/opt/gesture-nb/bin:$PATH
RUN pip install ${TORCH_OPTIONS} "${TORCH}"
WORKDIR /source
COPY pyproject.toml setup.py settings.ini README.md LICENSE NOTICE requirements.nodeps.lock ./
COPY gesture_nb gesture_nb/
RUN pip install ".[${EXTRAS}]" && pip install --no-deps -r requirements.nodeps.lock && pip check

FROM python:${PYTHON}-slim
# OpenMP, which LightGBM loads.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 gesture
COPY --from=build /opt/gesture-nb /opt/gesture-nb
ENV PATH=/opt/gesture-nb/bin:$PATH MPLBACKEND=Agg
USER gesture
WORKDIR /home/gesture
ENTRYPOINT ["gesture-nb"]
CMD ["--help"]
