"""How fast clips are read, against other readers and against the bare cost of decoding.

python experiments/benchmarks/decoding/bench.py [--quick] [--parts times loader memory pixels] [--only TEXT ...]

Prints Markdown tables and writes all single figures to results.json. README.md says what is measured and how.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import av

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peer_ffmpeg import share_ffmpeg

PARTS = ("times", "loader", "memory", "pixels")
LIMIT = 120.0  # seconds a child process may be silent
CLIPS = Path(__file__).resolve().parents[4] / "shared" / "data" / "clips"
CHECKS = {"train": 4, "eval": 1, "long": 1}  # jobs whose frames are identified
LOADED = ("Kinetics clip", "MPEG-4 320x240 avi", "H.264 1280x720, GOP 60")
REMEMBERED = ("H.264 1280x720, GOP 60", "HEVC 1920x1080")
SMALL = "H.264 340x256, GOP 12"
SEEN = ("Kinetics clip", "H.264 1280x720, GOP 60")
QUICK = ["MPEG-4 320x240 avi", "H.264 340x256, GOP 12"]
# one form of each where all of them would take long
FEW = (
    "vidtrain",
    "torchcodec exact",
    "torchcodec exact, transforms",
    "torchcodec mapped",
    "torchcodec mapped, transforms",
    "decord",
    "OpenCV",
    "PyAV as in transformers",
)


def arguments() -> argparse.Namespace:
    folder = Path(tempfile.gettempdir()) / "vidtrain_decoding"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, default=CLIPS, help=f"folder with the real clips ({CLIPS})")
    parser.add_argument("--videos", type=Path, default=folder, help=f"where videos are made once ({folder})")
    parser.add_argument("--results", type=Path, default=None, help="default: results.json in the folder --videos")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--works", nargs="+", default=["train", "eval", "long"])
    parser.add_argument("--only", nargs="+", default=[""], help="videos whose name has one of these in it")
    parser.add_argument("--readers", nargs="+", default=[""], help="readers whose name has one of these in it")
    parser.add_argument("--extra", nargs="+", default=[], metavar="NAME=PATH", help="more videos")
    parser.add_argument("--seconds", type=float, default=60.0, help="budget of one work on one video (60)")
    parser.add_argument("--quick", action="store_true", help="two small videos, two rounds: does it work?")
    return parser.parse_args()


def environment() -> dict[str, str]:
    import cv2
    import decord
    import torch
    import torchcodec
    import torchvision
    from torchcodec._core import get_ffmpeg_library_versions

    video = next(line for line in cv2.getBuildInformation().splitlines() if "avcodec:" in line)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "PyAV": f"{av.__version__}, FFmpeg {av.ffmpeg_version_info}",
        "torchcodec": f"{torchcodec.__version__}, FFmpeg {get_ffmpeg_library_versions()['ffmpeg_version']}",
        "decord": f"{decord.__version__}, its own FFmpeg",
        "OpenCV": f"{cv2.__version__}, its own libavcodec {video.split('(')[-1].rstrip(')')}",
        "torchvision": f"{torchvision.__version__}, "
        + ("reads video, not measured" if hasattr(torchvision.io, "read_video") else "cannot read video"),
        "processors": str(os.cpu_count()),
    }


class Bench:
    def __init__(self, options: argparse.Namespace):
        from peers import readers
        from videos import videos

        self.options = options
        every = videos(options.clips, options.videos, options.extra)
        for video in every:
            if video.path is None:
                note(f"left out: {video.name}: {video.why}")
        self.videos = {v.name: v.path for v in every if v.path and any(text in v.name for text in options.only)}
        always = ("vidtrain", "floor")
        self.readers = [name for name in readers() if name in always or any(text in name for text in options.readers)]
        self.results: dict[str, dict] = {key: {} for key in ("videos", "checks", "times", *PARTS[1:])}
        self.results["environment"] = environment()
        self.results["load average"] = {"start": os.getloadavg()}

    def guarded(self, function, path: str, names: list[str], rest: tuple, receive, halted) -> None:
        """Runs a part on a video, again without any reader that made it hang or crash."""
        from guard import run

        names = list(names)
        while halt := run(function, (path, list(names), *rest), LIMIT, receive):
            if halt.at not in names:
                raise RuntimeError(f"{path}: {halt.cause} at {halt.at or 'the start'}")
            note(f"{path}: {halt.at}: {halt.cause}")
            names.remove(halt.at)
            halted(halt.at, halt.cause)

    def times(self) -> None:
        from parts import Settings, measure

        options = self.options
        checks = {work: 1 if options.quick else CHECKS[work] for work in options.works}
        seconds, *rounds = (0, 2, 2) if options.quick else (options.seconds, 5, 40)
        settings = Settings(seconds, *rounds, checks)
        for video, path in self.videos.items():
            note(f"times: {video}")
            checks = self.results["checks"].setdefault(video, {})
            hung: dict[str, str] = {}

            def receive(kind, *found, video=video, checks=checks):
                if kind == "video":  # a start, perhaps after a reader hung: what it had timed is not used
                    self.results["videos"][video] = found[0]
                    for work in options.works:
                        self.results["times"].setdefault(work, {})[video] = {}
                elif kind == "check":
                    checks.setdefault(found[0], {})[found[1]] = found[2]
                else:
                    work, number, reader, *figures = found
                    into = self.results["times"][work][video].setdefault(reader, {"wall": [], "cpu": []})
                    wall, cpu = figures if len(figures) == 2 else (None, None)
                    into["wall"].append(wall)
                    into["cpu"].append(cpu)
                    if wall is None:
                        note(f"{video}: {work}, round {number}: {reader}: {figures[0]}")

            self.guarded(measure, path, self.readers, (settings,), receive, hung.__setitem__)
            for reader, cause in hung.items():
                checks[reader] = dict.fromkeys(options.works, cause)

    def loader(self) -> None:
        from parts import load

        batches, rounds = (2, 1) if self.options.quick else (8, 3)
        for video, path in self._matching(LOADED).items():
            note(f"loader: {video}")
            into = self.results["loader"].setdefault(video, {name: [] for name in self._few()})

            def receive(kind, number, reader, found, into=into):
                into[reader].append(found)

            def halted(reader, cause, into=into):
                for found in into.values():
                    found.clear()
                into[reader] = [cause]

            self.guarded(load, path, self._few(), (batches, rounds), receive, halted)

    def memory(self) -> None:
        from guard import run
        from parts import remember

        small = next((path for name, path in self.videos.items() if name.startswith(SMALL)), None)
        for video, path in self._matching(REMEMBERED).items():
            into = self.results["memory"].setdefault(video, {})
            for name in self._few()[:2] if self.options.quick else self.readers:
                note(f"memory: {video}: {name}")
                count = 2 if self.options.quick else 8
                rest = (name, small or path, path, count)
                halt = run(remember, rest, LIMIT, lambda kind, reader, found, into=into: into.update({reader: found}))
                if halt:
                    into[name] = halt.cause

    def pixels(self) -> None:
        from parts import look

        for video, path in self._matching(SEEN).items():
            note(f"pixels: {video}")
            into = self.results["pixels"].setdefault(video, {})

            def receive(kind, box, reader, scores, into=into):
                into.setdefault(box, {})[reader] = scores

            few = [name for name in self.readers if name in FEW or "scaled" in name]
            self.guarded(look, path, few, (), receive, lambda reader, cause: None)

    def _few(self) -> list[str]:
        return [name for name in self.readers if name in FEW]

    def _matching(self, starts: tuple[str, ...]) -> dict[str, str]:
        if self.options.quick:
            return dict(list(self.videos.items())[:1])
        return {name: path for name, path in self.videos.items() if name.startswith(starts)}


def show(results: dict[str, dict], works: list[str]) -> None:
    import tables
    from works import WORKS

    print("\n".join(f"- {name}: {value}" for name, value in results["environment"].items()))
    loads = results["load average"]
    print(f"- load average: {loads['start'][0]:.1f} at the start, {loads['end'][0]:.1f} at the end\n")
    if results["videos"]:
        print(tables.videos(results))
        print(f"## Wrong frames and failures\n\n{tables.checks(results)}")
        for work in works:
            print(f"## {work}: {WORKS[work]}\n\n{tables.work_tables(results, work)}")
    if results["loader"]:
        print(f"## DataLoader, 2 workers, batches of 8, train\n\n{tables.loader(results)}")
    if results["memory"]:
        print(f"## Growth of peak memory, MiB, train\n\n{tables.memory(results)}")
    if results["pixels"]:
        print(f"## Pixels\n\n{tables.pixels(results)}")


def note(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def main() -> None:
    options = arguments()
    share_ffmpeg(options.videos)
    if options.quick and options.only == [""]:
        options.only = QUICK
    bench = Bench(options)
    path = options.results or options.videos / "results.json"
    for part in options.parts:
        getattr(bench, part)()
        bench.results["load average"]["end"] = os.getloadavg()
        path.write_text(json.dumps(bench.results), encoding="utf-8")  # a part takes long, and the next may be stopped
    show(bench.results, options.works)
    note(f"all figures are in {path}")


if __name__ == "__main__":
    main()
