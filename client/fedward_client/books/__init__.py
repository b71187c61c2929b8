"""The site's books: ledger and audit on disk, register of units, finished replies.

Everything here is written with the file layer of ``files``, fsynced before it counts, and checked when read back.
Nothing here reads records, trains, or sends.
"""
