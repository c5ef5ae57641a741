"""Read files into documents: text, rows, tables, markup, and archives of them.

What is wrong with an input is handled by one rule, at every depth of archives:
- The build is refused (DataError) if the bytes cannot be had: a file or archive is damaged, or it
  goes beyond a limit that no honest text needs (see `containers`).
- A document is left out by name (LeftOut) if its bytes are there but of no use: a row without text,
  a file that is not read, markup that does not parse, a library that is not installed.
"""
