"""Energy Web's Data Hub as it is deployed, over a real nats-server: what the tests' ``transport = "ddhub"`` talks to.

``hub.py`` (DataHub) starts everything: the DID-auth proxy (``proxy.py``) with the message broker behind it
(``broker.py``, ``channels.py``, ``messages.py``, ``topics.py``), and, on another port, the SSI Hub (``ssi_hub.py``) and
a node of the chain (``rpc.py``, ``chain.py``). Shares no code with the agent: it judges signatures with eth_account,
transactions with rlp, payloads with jsonschema.

It does what the deployed systems do, their faults included: a search loses what its filters leave out, a 200 may say
that everything failed, results have no order, roles are never forgotten. It does not keep their maintenance calls, does
not verify role credentials (a participant's roles are what a test says) and is no judge of load.
"""
