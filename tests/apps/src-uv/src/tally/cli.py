from importlib.metadata import version

from tally import GREETING


def main() -> None:
    print("tally", version("tally"), GREETING)
