"""What the site's and the operator's processes need from the operating system: no network, few files, an orderly life.

    kernel      -> system calls that Python has no name for
    namespaces  -> leave the machine's network
    seccomp     -> open no socket but a Unix socket; no namespace, no mount, no chmod
    paths       -> what a Python process must read
    view        -> a file tree of its own: what is not named does not exist
    landlock    -> open no file but these
    exec        -> become another program: without network, and dead when its starter is dead
    holding     -> one process at a time: hold, holder, stop
    life        -> one life of a child process
    keeper      -> one child, kept alive
    processes   -> the supervisor of all children
    logs        -> one JSON object a line, without the texts of unknown errors

Standard library and ctypes alone. Where the kernel lacks a feature, a typed error or a returned value says so.
"""
