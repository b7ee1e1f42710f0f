"""Requests a health URL and exits with status 0 if the response is 200. It is the health check inside containers, which have no curl."""

import sys
import urllib.error
import urllib.request


def main() -> int:
    """Request the URL in the first command line argument, with a timeout of 3 seconds. Return the exit status, 0 or 1."""
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=3) as answer:
            return 0 if answer.status == 200 else 1
    except (OSError, urllib.error.URLError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
