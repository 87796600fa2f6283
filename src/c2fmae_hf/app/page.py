"""
A page to try a pre-trained model on: choose or upload a photograph, hide parts of it, and see what the model predicts
there and what its patches attend to.

Everything comes from a local folder: nothing is downloaded, and the page loads nothing from other servers.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path


# Set before the imports that read them. Gradio would otherwise report usage and look for newer versions.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr
import numpy as np
from PIL import Image, ImageOps

from ..pictures.colours import UNKNOWN_COLOUR
from ..pictures.photographs import MAX_PIXELS, MIN_SIDE, embedded_photographs
from .playground import MAX_SEED, Photograph, Pictures, Playground, WeightsFacts, facts_of_weights


# Captions by name in scikit-image or scikit-learn. The page opens with the first one.
EXAMPLES = {
    "chelsea": "Cat",
    "astronaut": "Astronaut",
    "coffee": "Coffee",
    "rocket": "Rocket",
    "motorcycle": "Motorcycle",
    "china": "Palace",
    "flower": "Flower",
    "coins": "Coins",
}
# Photographs are dropped after an hour, or to free memory.
GONE = "The photograph is no longer in memory: choose or upload one."
MAX_FILE_SIZE = "30mb"
# Seconds. Older uploads are deleted from their temporary folder twelve times in this period.
KEEP_UPLOADS = 3600
# Visitors; each keeps a photograph of less than a megabyte in memory.
MAX_SESSIONS = 500
MAX_WAITING = 64
# `instance_map_from_labels` keeps no more.
MAX_INSTANCES = 64
# Smallest and largest share of hidden patches.
RATIOS = (0.05, 0.95)

CSS = """
.gradio-container { max-width: 1160px !important; margin: 0 auto; }
.gradio-container .html-container { padding: 0 !important; }
/* Gradio reserves room for a preview and keeps thumbnails large. */
#examples .grid-wrap { min-height: 0; height: auto; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 6px; }
#examples .caption-label { max-width: 100%; font-size: 0.75rem; padding: 1px 6px; right: 0; bottom: 0; }
.panels { display: grid; gap: 12px; align-items: end; }
.panels { grid-template-columns: repeat(auto-fit, minmax(min(140px, 30%), 1fr)); }
.panels figure { margin: 0; max-width: 330px; }
.panels img { width: 100%; display: block; image-rendering: pixelated; border-radius: 4px; }
.panels figcaption { font-size: 0.9rem; margin-bottom: 4px; font-weight: 600; }
.legend { list-style: none; padding: 0; margin: 12px 0 0; display: flex; flex-wrap: wrap; gap: 4px 16px; }
.legend li { display: flex; align-items: center; gap: 6px; margin: 0; }
.swatch { width: 1em; height: 1em; border: 1px solid var(--body-text-color); border-radius: 2px; flex: none; }
.note { margin: 8px 0 0; }
.alert { border-left: 4px solid #d55e00; padding: 4px 12px; margin: 8px 0 0; font-weight: 600; }
.weights { overflow-wrap: anywhere; }
/* Gradio loads these when they are scrolled to: without a size they would have no height until then. */
#attention_photo .image-frame, #attention_map .image-frame, #attention_photo img, #attention_map img { width: 100%; }
#attention_photo img { cursor: crosshair; }
#status:not(:has(p)) { display: none; }
@media (max-width: 640px) {
  .gradio-container .main { padding: 12px !important; }
  #examples .caption-label { font-size: 0.65rem; padding: 0 4px; }
  .panels { gap: 8px; }
  .panels figcaption { font-size: 0.8rem; }
}
:focus-visible { outline: 3px solid #0072b2 !important; outline-offset: 2px; }
"""


def as_source(picture: np.ndarray, lossless: bool) -> str:
    """Encode a picture `(height, width, 3)` as a data URL, so that no file is written or fetched."""
    buffer = io.BytesIO()
    # Maps must keep their exact colours.
    Image.fromarray(picture).save(buffer, **({"format": "PNG"} if lossless else {"format": "WEBP", "quality": 90}))
    kind = "png" if lossless else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def show_prediction(prediction: Pictures) -> str:
    """Render pictures, counts and legend as HTML."""
    classes = ", ".join(name for name, _, share in prediction.classes[:5] if share > 0)
    texts = {
        "photograph": ("Photograph", "the photograph at the model's size, nothing hidden"),
        "regions": (
            "Guessed regions",
            f"regions that guide the mask: the {prediction.strategy} map that the model predicts for all patches",
        ),
        "masked": ("Visible", "the photograph with the hidden patches in light grey"),
        "semantic": ("1. Semantics", f"predicted classes of the hidden patches: {classes}"),
        "instance": (
            "2. Instances",
            f"predicted instances in the hidden patches: {prediction.num_instances}",
        ),
        "image": ("3. Pixels", "the photograph with predicted pixels in the hidden patches"),
    }
    figures = "".join(
        f'<figure id="panel-{name}"><figcaption>{title}</figcaption><img alt="{html.escape(alt)}" '
        f'src="{as_source(prediction.panels[name], name not in ("photograph", "masked", "image"))}"></figure>'
        for name, (title, alt) in texts.items()
        if name in prediction.panels
    )
    entries = [(colour, f"{name}, {show_share(share)}") for name, colour, share in prediction.classes]
    entries.append((np.array(UNKNOWN_COLOUR), "hidden (second picture), or visible and not predicted (maps)"))
    legend = "".join(
        f'<li><span class="swatch" style="background: rgb({", ".join(map(str, colour))})"></span>'
        f"{html.escape(text)}</li>"
        for colour, text in entries
    )
    hidden = f"{prediction.num_masked} of {prediction.num_patches} patches"
    text = f"{prediction.strategy.capitalize()} masking hides {hidden}."
    number = prediction.num_instances
    if number is not None:
        limit = " (the limit)" if number >= MAX_INSTANCES else ""
        text += f" Instances found there: {number}{limit}, in arbitrary colours; nearly black means no instance."
    heading = "Predicted classes, as shares of the hidden patches:" if prediction.classes else "Colours:"
    return (
        f'<div class="panels">{figures}</div><p class="note" id="counts">{text}</p>'
        f'<p class="note">{heading}</p><ul class="legend">{legend}</ul>'
    )


def show_share(share: float) -> str:
    if share == 0:
        return "only in the guessed regions"
    return f"{share:.0%}" if share >= 0.005 else "less than 1%"


def show_message(text: str, is_error: bool = False) -> str:
    kind = 'class="alert" role="alert"' if is_error else 'class="note" role="status"'
    return f"<p {kind}>{html.escape(text)}</p>" if text else ""


def show_weights(facts: WeightsFacts) -> str:
    return (
        f'<p class="weights"><code>{html.escape(facts.folder)}</code>: {html.escape(facts.architecture)}. '
        f"{html.escape(facts.training)}</p>"
    )


def say_classes(names: Mapping[int, str], most: int = 20) -> str:
    """List the classes that the model knows, in words."""
    known = [name for name in names.values() if name != "background"]
    listed = ", ".join(html.escape(name) for name in known[:most]) + (", ..." if len(known) > most else "")
    return f"It knows {len(known)} classes: {listed}. Anything else it takes for one of these, or for background."


def refuse_addresses(component: gr.components.Component) -> None:
    """
    Keep Gradio from fetching an address that a client sends instead of a file. The method is replaced on the instance,
    because for a subclass Gradio would write a file beside this one.
    """
    move = component.async_move_resource_to_block_cache

    async def move_file(path: str | Path | None) -> str | None:
        if re.match(r"\s*\w+://", str(path)):
            raise gr.Error("Addresses are not fetched: upload the file itself.", print_exception=False)
        return await move(path)

    component.async_move_resource_to_block_cache = move_file


def take_any_number(component: gr.components.Component) -> gr.components.Component:
    """
    Pass on what was typed. Gradio would answer a number out of range with an error of its own, and the slider would
    then show another number than the pictures.
    """
    component.preprocess = lambda payload: payload
    return component


def within(value: object, low: float, high: float, instead: float, is_whole: bool = True) -> float:
    """The number, clipped to `low` and `high`; `instead` if the value is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return instead
    value = min(max(value, low), high)
    return round(value) if is_whole else value


def make_theme() -> gr.themes.Base:
    """A theme with the system's fonts and greys of sufficient contrast."""
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return theme.set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        block_title_text_color="*neutral_800",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color_dark="*neutral_300",
        block_title_text_color_dark="*neutral_100",
    )


def build_app(playground: Playground, facts: WeightsFacts) -> gr.Blocks:
    """Build the page."""
    config = playground.config
    rows, columns = playground.grid_size
    pictures = embedded_photographs(list(EXAMPLES))
    captions = list(EXAMPLES.values())
    # Compute the opening view once, for all visitors.
    strategy, ratio, seed = playground.strategies[-1], config.mask_ratio, 0
    place = (rows // 2 + 1, columns // 2 + 1, config.num_hidden_layers, 0)
    first = playground.open(next(iter(pictures.values())))

    def predict(photograph: Photograph, strategy: str, ratio: float, seed: int) -> str:
        return show_prediction(playground.predict(photograph, strategy, ratio, seed))

    def attend(photograph: Photograph, row: int, column: int, layer: int, head: int) -> Sequence:
        found = playground.attention(photograph, row - 1, column - 1, layer - 1, head - 1 if head else None)
        which = f"head {head}" if head else f"the mean of {config.num_attention_heads} heads"
        text = (
            f"Row {row}, column {column}, layer {layer}, {which}: the brightest patch gets {found.weights.max():.1%} "
            f"of the attention, the class token (not shown) {found.class_token:.1%}. Even attention would give each "
            f"{1 / (1 + found.weights.size):.1%}."
        )
        return (
            playground.draw_photograph(photograph, row - 1, column - 1),
            playground.draw_attention(photograph, found, row - 1, column - 1),
            show_message(text),
        )

    def possible(ratio: object, seed: object) -> tuple[float, int]:
        return within(ratio, *RATIOS, config.mask_ratio, is_whole=False), within(seed, 0, MAX_SEED, 0)

    def possible_place(row: object, column: object, layer: object) -> tuple[int, int, int]:
        limits = (rows, columns, config.num_hidden_layers)
        return tuple(within(value, 1, limit, 1) for value, limit in zip((row, column, layer), limits))

    def open_value(value: object, name: str, settings: Sequence, example: int | None = None) -> Sequence:
        """The photograph and everything shown of it; for a bad one only a message, and the rest stays."""
        strategy, ratio, seed, *place, head = settings
        try:
            photograph = playground.open(value)
            shown = (
                predict(photograph, strategy, *possible(ratio, seed)),
                *attend(photograph, *possible_place(*place), head),
            )
        except ValueError as error:
            text = f"{name} cannot be used: {error}. The previous photograph stays."
            return show_message(text, is_error=True), *[gr.skip()] * 6
        text = " ".join((f"{name} is shown.", *photograph.notes))
        return show_message(text), photograph, *shown, gr.Gallery(selected_index=example)

    def on_example(event: gr.SelectData, *settings):
        index = int(event.index)
        return open_value(list(pictures.values())[index], f"The example “{captions[index]}”", settings, index)

    def on_upload(path: str | None, *settings):
        if path is None:
            return show_message("No file was received.", is_error=True), *[gr.skip()] * 6
        return open_value(str(path), "The uploaded file", settings)

    def on_settings(photograph: Photograph | None, strategy: str, ratio: object, seed: object):
        if photograph is None:
            return show_message(GONE, is_error=True), gr.skip()
        try:
            return "", predict(photograph, strategy, *possible(ratio, seed))
        except ValueError as error:
            return show_message(f"This cannot be shown: {error}.", is_error=True), gr.skip()

    def on_place(photograph: Photograph | None, row: object, column: object, layer: object, head: int):
        if photograph is None:
            return gr.skip(), gr.skip(), show_message(GONE, is_error=True)
        try:
            return attend(photograph, *possible_place(row, column, layer), head)
        except ValueError as error:
            return gr.skip(), gr.skip(), show_message(f"This cannot be shown: {error}.", is_error=True)

    def on_click(event: gr.SelectData, photograph: Photograph | None, layer: object, head: int):
        if photograph is None:
            return gr.skip(), gr.skip(), *on_place(None, 1, 1, layer, head)
        picture = playground.draw_photograph(photograph, 0, 0)
        row, column = (index + 1 for index in playground.patch_at(*event.index, picture.shape[:2]))
        return row, column, *on_place(photograph, row, column, layer, head)

    with gr.Blocks(
        title="C2FMAE: from semantics to pixels",
        analytics_enabled=False,
        delete_cache=(KEEP_UPLOADS // 12, KEEP_UPLOADS),
    ) as app:
        photograph = gr.State(None, time_to_live=KEEP_UPLOADS)
        about = (
            "The model sees a few patches of a photograph and predicts the hidden ones, coarse to fine: semantics "
            "(what is where), then instances (what belongs together), then pixels."
        )
        if "semantic" in config.granularities:
            about += f" {say_classes(playground.viewed.class_names)}"
        gr.Markdown(f"# C2FMAE: from semantics to pixels\n{about}", elem_id="about")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                gr.Markdown("## Photograph")
                gallery = gr.Gallery(
                    [(ImageOps.fit(picture, (192, 192)), text) for picture, text in zip(pictures.values(), captions)],
                    label="Examples",
                    show_label=False,
                    columns=4,
                    height="auto",
                    object_fit="cover",
                    allow_preview=False,
                    selected_index=0,
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                )
                upload = gr.UploadButton("Upload a photograph", file_types=["image"], elem_id="upload")
                refuse_addresses(upload)
                status = gr.HTML(elem_id="status")
                gr.Markdown(
                    f"At least {MIN_SIDE} pixels a side, at most {MAX_PIXELS // 10**6} million pixels and "
                    f"{MAX_FILE_SIZE[:-2]} MB. The model sees the middle. Uploads stay on this server and are deleted "
                    f"after about {KEEP_UPLOADS // 60} minutes."
                )
            with gr.Column(scale=2, min_width=300):
                gr.Markdown("## What is hidden")
                strategies = gr.Radio(
                    [(name.capitalize(), name) for name in playground.strategies],
                    value=strategy,
                    label="Masking",
                    info="Semantic and instance masking leave a part of every region visible.",
                    elem_id="strategy",
                )
                ratios = take_any_number(
                    gr.Slider(
                        *RATIOS, value=ratio, step=0.05, label="Share of hidden patches", buttons=[], elem_id="ratio"
                    )
                )
                with gr.Row():
                    seeds = take_any_number(gr.Number(seed, precision=0, label="Mask number", min_width=120))
                    another = gr.Button("Next mask", min_width=120, elem_id="next")
                if len(playground.strategies) > 1:
                    gr.Markdown(
                        "The regions are the model's own guess: it predicts each patch while that patch is hidden."
                    )
        gr.Markdown("## What the model predicts")
        panels = gr.HTML(predict(first, strategy, ratio, seed), elem_id="panels")
        if "image" in config.granularities and config.norm_pix_loss:
            gr.Markdown("Predicted pixels take each patch's brightness and contrast from the photograph.")
        gr.Markdown(
            "## What a patch attends to\n"
            "Click a patch, or choose its row and column. Here the encoder sees the whole photograph. Dark blue is no "
            "attention, yellow the most that any patch gets; colours follow the square root."
        )
        photo_value, heat_value, text_value = attend(first, *place)
        images = []
        with gr.Row():
            for name, value, label, text in (
                (
                    "attention_photo",
                    photo_value,
                    "Chosen patch",
                    "The photograph as the model sees it, with a frame around the chosen patch",
                ),
                (
                    "attention_map",
                    heat_value,
                    "Its attention",
                    "Attention of the chosen patch over the photograph; the numbers are below",
                ),
            ):
                # Patches are then large enough for a finger.
                with gr.Column(min_width=280):
                    gr.Markdown(f"**{label}**")
                    images.append(
                        gr.Image(
                            value,
                            label=label,
                            show_label=False,
                            alt_text=text,
                            interactive=False,
                            buttons=[],
                            elem_id=name,
                        )
                    )
            clickable, heat = images
            with gr.Column(min_width=280):
                row, column, layer = (
                    take_any_number(
                        gr.Slider(1, limit, value=value, step=1, precision=0, buttons=[], label=label, elem_id=name)
                    )
                    for limit, value, label, name in (
                        (rows, place[0], "Row of the patch", "row"),
                        (columns, place[1], "Column of the patch", "column"),
                        (config.num_hidden_layers, place[2], "Layer", "layer"),
                    )
                )
                head = gr.Dropdown(
                    [("Mean of all heads", 0), *((f"Head {i + 1}", i + 1) for i in range(config.num_attention_heads))],
                    value=0,
                    label="Heads",
                )
        attention_text = gr.HTML(text_value, elem_id="attention_text")
        gr.Markdown("## The weights")
        gr.HTML(show_weights(facts), elem_id="weights")

        # One computation at a time for all visitors; the others wait in Gradio's queue.
        common = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
        masking, places = [strategies, ratios, seeds], [row, column, layer, head]
        views = [clickable, heat, attention_text]
        everything = [status, photograph, panels, *views, gallery]
        # As the state's initial value it would silently replace a photograph that was dropped.
        app.load(lambda: first, None, photograph, queue=False, api_visibility="private")
        # By default Gradio drops clicks that come while one is answered.
        clicks = {"api_visibility": "private", "trigger_mode": "multiple", **common}
        gallery.select(on_example, [*masking, *places], everything, **clicks)
        upload.click(lambda: "", None, status, queue=False, api_visibility="private")
        upload.upload(on_upload, [upload, *masking, *places], everything, api_name="upload", **common)
        gr.on(
            [control.input for control in masking],
            on_settings,
            [photograph, *masking],
            [status, panels],
            api_name="predict",
            trigger_mode="always_last",
            **common,
        )
        gr.on(
            [control.input for control in places],
            on_place,
            [photograph, *places],
            views,
            api_name="attention",
            trigger_mode="always_last",
            **common,
        )
        another.click(
            lambda seed: within(within(seed, 0, MAX_SEED, 0) + 1, 0, MAX_SEED, 0),
            seeds,
            seeds,
            queue=False,
            api_visibility="private",
        ).then(on_settings, [photograph, *masking], [status, panels], api_visibility="private", **common)
        seeds.blur(lambda seed: within(seed, 0, MAX_SEED, 0), seeds, seeds, queue=False, api_visibility="private")
        clickable.select(on_click, [photograph, layer, head], [row, column, *views], **clicks)
    return app


def serve(checkpoint: str | os.PathLike, port: int | None = None) -> None:
    """
    Serve the page until it is stopped.

    Args:
        checkpoint: Folder of a pre-training model.
        port (`int`, *optional*): By default the first free one from 7860.

    Raises:
        `FileNotFoundError`, `ValueError`: if the folder holds no pre-training model.
        `OSError`: if the port is taken.
    """
    playground = Playground.from_folder(checkpoint)
    app = build_app(playground, facts_of_weights(checkpoint, playground.model))
    height, width = playground.config.image_height_width
    app.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    app.launch(
        server_port=port,
        share=False,
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=MAX_SESSIONS,
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=make_theme(),
        css=f"{CSS}#attention_photo img, #attention_map img {{ aspect-ratio: {width} / {height}; }}",
    )
