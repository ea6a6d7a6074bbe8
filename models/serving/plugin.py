"""vLLM's plugin: `hf_overrides={"carve": ["visionzip", 64]}` leaves 64 tokens of each image of a LLaVA."""

VERSIONS = ("0.32",)  # of vLLM, with which `python -m tests.serving` was run


def register() -> None:
    """Put our LLaVA classes in the place of vLLM's, which they are where nobody asks for `carve`.

    vLLM calls this in each of its processes, by the entry point `vllm.general_plugins`.

    Raises:
      RuntimeError: another version of vLLM, whose insides may differ.
    """
    import vllm

    version = vllm.__version__
    if ".".join(version.split(".")[:2]) not in VERSIONS:
        raise RuntimeError(
            f"tokencarve_jax's plugin is for vLLM {', '.join(VERSIONS)}, and this is {version}; install one of these, "
            "or leave the plugin out by VLLM_PLUGINS= in the environment"
        )
    for name in ("Llava", "LlavaNext"):
        vllm.ModelRegistry.register_model(f"{name}ForConditionalGeneration", f"models.serving.vllm_llava:{name}")
