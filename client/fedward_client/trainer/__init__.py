"""The process that sees data: no network, no flwr, one way in and out, the Door's Unix socket.

isolation -> leave the network, and prove it from inside
slots     -> when a reply may be handed over
turns     -> one plan at a time, in one thread, and what becomes of calls that are given up
service   -> the Door's other end: gRPC on a Unix socket
main      -> the process: in which order all this happens
"""
