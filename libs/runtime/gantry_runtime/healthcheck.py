"""Asks a health URL and ends with 0 when it answers 200: the health check inside a container, which has no curl."""

import sys
import urllib.error
import urllib.request


def main() -> int:
    """Ask the URL given as the first argument, at most 3 seconds."""
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=3) as answer:
            return 0 if answer.status == 200 else 1
    except (OSError, urllib.error.URLError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
