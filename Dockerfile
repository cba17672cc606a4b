# spa-prune in a container, from its wheel:
#     docker build -t spa-prune .
#     docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" spa-prune model.onnx --flops 0.5
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE spa_prune.py ./
COPY spa_graph ./spa_graph
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=build /wheels /wheels
RUN wheel="$(echo /wheels/*.whl)" && pip install --no-cache-dir "${wheel}[images,report]" && rm -r /wheels
WORKDIR /work
ENTRYPOINT ["spa-prune"]
CMD ["--help"]
