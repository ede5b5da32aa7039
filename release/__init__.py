"""What is made of a checkout for others: Debian packages, wheel, sdist, and the bill of what is inside.

    release/build              everything, into dist/
    release/build deb12-amd64  only that

Nothing here is shipped. The same commit gives the same bytes (docs/releasing.md).
"""
