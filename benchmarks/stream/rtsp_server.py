"""A camera on this machine: an endless clip by RTSP, from GStreamer's own server.

    python3 benchmarks/stream/rtsp_server.py FOLDER --port 8554 --size 160x120 --fps 40  # rtsp://127.0.0.1:8554/camera

FOLDER holds ``00000.jpg``, ``00001.jpg``, … It runs under any Python that has GStreamer's bindings and needs nothing of
vosrt: apt-get install gstreamer1.0-rtsp gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly
python3-gi gir1.2-gst-rtsp-server-1.0

A line ``WIDTHxHEIGHT`` on standard input changes the size of the pictures from then on, on open connections too. It
prints ``ready`` once it listens, then ``client`` for each connection.
"""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 (a version has to be asked for first)


def caps_of(size: str) -> str:
    """Return the caps of pictures of a size such as ``160x120``."""
    width, height = size.split("x")
    return f"video/x-raw,width={int(width)},height={int(height)}"


def main() -> None:
    """Serve until the process is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--port", required=True)
    parser.add_argument("--size", default="160x120")
    parser.add_argument("--fps", type=int, default=40)
    options = parser.parse_args()
    Gst.init(None)
    server, factory = GstRtspServer.RTSPServer(service=options.port), GstRtspServer.RTSPMediaFactory()
    # A key frame a second, with the parameters before each, as cameras send them: a decoder learns the new size there.
    # GStreamer sends them before every slice, which ends a picture for FFmpeg: hence one thread, one slice.
    factory.set_launch(
        f'( multifilesrc location="{options.folder}/%05d.jpg" loop=true caps=image/jpeg,framerate={options.fps}/1 '
        f"! jpegdec ! videoconvert ! videoscale ! capsfilter name=size caps={caps_of(options.size)} "
        f"! x264enc tune=zerolatency speed-preset=ultrafast threads=1 key-int-max={options.fps} "
        "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
    )
    factory.set_shared(True)
    open_media: list[Any] = []
    factory.connect("media-configure", lambda _, media: open_media.append(media))
    server.connect("client-connected", lambda *_: print("client", flush=True))
    server.get_mount_points().add_factory("/camera", factory)
    if not server.attach(None):
        raise SystemExit(f"port {options.port} is taken")
    print("ready", flush=True)

    def listen() -> None:
        for line in sys.stdin:
            options.size = line.strip()
            for media in open_media:
                media.get_element().get_by_name("size").set_property(
                    "caps", Gst.Caps.from_string(caps_of(options.size))
                )

    threading.Thread(target=listen, daemon=True).start()
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
