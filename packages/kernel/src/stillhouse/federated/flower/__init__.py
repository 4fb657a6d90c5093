"""Federations on Flower: the same stage with its clients in other processes or on other hosts.

`run` starts one on this machine (`simulation`, clients in Ray's actors) or through a SuperLink
(`deployment`, clients on SuperNodes). `server` plays the rounds with the stage's own code, `client`
is what a node does with a message, `messages` what is in one; only `bridge` imports Flower.
"""
