# /// script
# dependencies = ["dcal_hf[demo]"]
# ///
"""Shows a DCAL checkpoint in the browser, with gradio.

A classifier: drop a photograph to see its classes and where the model looked. `--calibrated` applies the temperature
that recipes/run_fgvc.py has fitted and saved beside the checkpoint.

    python recipes/demo.py --model_name_or_path out/birds

A Re-ID checkpoint: compare two photographs, with the threshold that recipes/verify.py has calibrated, if any, and
search a gallery of recipes/embed.py:

    python recipes/demo.py --model_name_or_path out/reid --gallery_dir gallery

`--export_space` writes the folder of a Hugging Face Space instead, with the checkpoint, the gallery and this code:

    python recipes/demo.py --model_name_or_path out/birds --export_space space
"""

if __name__ == "__main__":
    from cli import run_script

    # Imports this file as a module, unless only its help is asked for, because the imports below take seconds.
    raise SystemExit(run_script(__file__))

import logging
from dataclasses import dataclass, field
from importlib.util import find_spec

from arguments import HubArguments, parse_arguments
from common import set_up_logging
from demo_app import CSS, load_demo, page
from space import write_space


@dataclass
class DemoArguments:
    """The gallery, the server, or the Space to write."""

    gallery_dir: str | None = field(default=None, metadata={"help": "Folder of a gallery to search."})
    title: str | None = field(default=None, metadata={"help": "Title of the page; by default the model's name."})
    calibrated: bool = field(
        default=False,
        metadata={"help": "Divide the joint logits by the temperature that recipes/run_fgvc.py fitted."},
    )
    server_name: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 lets other computers in."}
    )
    server_port: int = field(default=7860, metadata={"help": "Port to listen on."})
    export_space: str | None = field(
        default=None, metadata={"help": "Write the folder of a Hugging Face Space, and do not start a server."}
    )


ARGUMENTS = (DemoArguments, HubArguments)


def main() -> None:
    args, hub_args = parse_arguments(ARGUMENTS)
    if find_spec("gradio") is None:
        raise ImportError("The demo needs gradio: pip install dcal_hf[demo]")
    set_up_logging(logging.WARNING)
    demo = load_demo(hub_args, args.gallery_dir, args.title, args.calibrated)
    if args.export_space is not None:
        print(write_space(demo, args.export_space))
        return
    page(demo).launch(server_name=args.server_name, server_port=args.server_port, css=CSS)
