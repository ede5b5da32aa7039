"""Energy Web's Data Hub as it is deployed, over a real nats-server: what the tests' ``transport = "ddhub"`` talks to.

``hub.py`` (DataHub) starts everything: the DID-auth proxy (``proxy.py``) with the message broker behind it
(``broker.py``; ``channels.py``, ``topics.py``, ``messages.py``, ``searches.py``, ``files.py``), and, on another port,
the SSI Hub (``ssi_hub.py``) and a node of the chain (``rpc.py``, ``chain.py``). ``gateway.py`` is another participant.
Shares no code with the agent: eth_keys judges signatures, rlp transactions, jsonschema payloads.

It does what the deployed systems do, their faults included: a search loses what its filters leave out, a 200 may say
that everything failed, results have no order, roles are never forgotten.

Stricter than they are known to be: a body must be called JSON (JAX-RS and NestJS, by what is known of them), a refresh
token is no access token, and a DID that is not written by EIP-55 cannot log in.

Not here, so no test may count on it:

- broker: calls for maintenance (``reinit...``, ``clientdIdsUpdateWait``, ``createindex``, ``token/generator``: 403),
  uploads in chunks, formats of JSON Schema that jsonschema does not judge by itself (``date-time``, ``uri``), and what
  the specification leaves open (one DID twice in ``fqcns`` gets two messages). ``ack_wait`` is 30 s throughout.
- proxy: role credentials (a participant's roles are what a test says), mTLS by status (495, 496 are faults to put).
- SSI Hub: claims and their enrichment of documents; its cache is the fault "stale-document". Tokens are HS256.
- chain: other contracts, meta-transactions, gas beyond a rule of thumb, finality.
- gateway: it judges no schema, drains all keys and not one a minute, reads batches of several senders (a deployed one
  loses all but the first sender's), acknowledges at once and not with the next call, and keeps no document for an hour.
- load: it is no judge of it.
"""
