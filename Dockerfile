# The image of launch/jobset.yaml and of `var-jax sweep --backend jobset`:
#   docker build --tag REGISTRY/var-jax --build-arg EXTRA=tpu,gcs .
# EXTRA: extras of setup.cfg, such as cuda, or tpu with gcs for workdirs in buckets; without it, CPUs.
# Configs are named as they come with the package (--config imagenet256:d16); one of your own goes into a layer on top:
#   FROM REGISTRY/var-jax
#   COPY my_config.py .
FROM python:3.12-slim
ARG EXTRA=
WORKDIR /build
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY configs configs
COPY var_jax var_jax
RUN pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}"
WORKDIR /runs
RUN var-jax config digits:d2 --diff
ENTRYPOINT ["var-jax"]
