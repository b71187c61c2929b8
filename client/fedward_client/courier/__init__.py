"""The courier: the site's side with a network. It carries bytes between the operator and the Door, and knows no data.

    folder  -> what the courier has on disk: where the operator is, whom to believe, its key
    faults  -> what can be wrong between the courier and the operator, and who mends it
    status  -> what it says of itself: for people, and for the supervisor that restarts a deaf one
    link    -> HTTPS to one server with one CA, through a proxy or not, bounded in bytes and time
    fleet   -> Flower's Fleet API, as the courier speaks it
    heart   -> the heartbeats, on a thread of their own
    loop    -> pull a message, hand it to the Door, push the reply
    main    -> the process: gives up all files but its own, then runs the loop

It is one process that speaks Flower's Fleet API with Flower's own messages and client, and not Flower's SuperNode with
an executor beside it: no code is ever fetched, no port is opened on this machine, and the rules of retrying are ours.
"""
