# syntax=docker/dockerfile:1
# raymask and Ray, for machines without GPUs and with NVIDIA's:
#
#   docker build --target cpu --tag raymask:cpu .
#   docker build --target gpu --tag raymask:gpu .
#   docker run --rm --shm-size 2g --volume "$PWD:/data" raymask:cpu raymask segment /data/photos --out /data/masks
#
# The two differ in torch alone. Without a driver, CUDA's libraries would be 5 GB that nobody uses.

FROM python:3.12-slim-bookworm AS base
# Not root, for whom a decoder that an image has taken over could do more.
RUN useradd --create-home --uid 1000 raymask
ENV PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /opt/raymask
# What raymask needs comes before raymask, so that a change of its code does not fetch gigabytes again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && echo 'ray[default]' >> requirements.txt

FROM base AS cpu
RUN grep -E '^torch(vision)?==' constraints.txt > torch.txt \
    && pip install --index-url https://download.pytorch.org/whl/cpu --requirement torch.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY . .
RUN pip install --no-deps .
# A number, by which Kubernetes can tell that it is not root.
USER 1000

FROM base AS gpu
RUN pip install --constraint constraints.txt --requirement requirements.txt
# Which of the host's drivers the container is shown.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY . .
RUN pip install --no-deps .
USER 1000
