"""The benchmark client: ``python -m mmx.bench serve`` and ``mmx bench serve``.

``options`` -> ``dataset`` (prompts) -> ``load`` (when each request goes out) -> ``client`` (one request) ->
``events`` (what arrived when) -> ``measures`` -> ``report`` (printed block) and ``result_file`` (JSON).
Works against any server with the OpenAI endpoints; needs no device and no torch.
"""
