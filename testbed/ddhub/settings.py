"""The limits and lifetimes of the deployed systems; a test may choose others."""

from __future__ import annotations

from dataclasses import dataclass

USER = ("user.roles.*.apps.*energyweb.*.ewc",)
ADMIN = ("admin.roles.*.apps.*energyweb.*.ewc",)
TOPICCREATOR = (
    "topiccreator.roles.ddhub.apps.*energyweb.*.ewc",
    "user.roles.*.apps.*energyweb.*.ewc",
    "topiccreator.roles.*.apps.*.*.ewc",
)
CHAIN_NAMES = {73799: "volta", 246: "ewc"}
REGISTRIES = {
    "volta": "0xc15d5a57a8eb0e1dcbe5d88b8f9a82017e5cc4af",
    "ewc": "0xE29672f34e92b56C9169f9D485fFc8b9A136BCE4",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Seconds, bytes and counts. NATS's own ``max_payload`` is a setting of its server."""

    # proxy
    access_ttl_s: int = 3600
    refresh_ttl_s: int = 86400
    block_margin: int = 4  # an identity token is refused if the newest block - this >= its blockNumber
    blocknum_auth: bool = True  # False: POST /auth/login is 404, as with BLOCKNUM_AUTH_ENABLED=false
    nonce_ttl_s: int = 60
    # broker
    user: tuple[str, ...] = USER
    admin: tuple[str, ...] = ADMIN
    topiccreator: tuple[str, ...] = TOPICCREATOR
    expiry_ms: int = 86_400_000
    message_max: int = 8_388_608  # a whole NATS message
    file_max: int = 512_000_000
    client_id_max: int = 200  # reported, not enforced
    body_max: int = 512_000 * 1024  # an HTTP request
    duplicate_window_s: int = 120
    replicas: int = 1
    entities_allowed: bool = True  # False: as release v2.1.3, which takes no `&lt;` in plain strings
    ack_wait_s: float = 30.0
    fetch_wait_s: float = 3.0  # how long a search waits for what is there
    request_wait_s: float = 1.0  # JetStream's answers
    # SSI Hub
    hub_access_ttl_s: int = 900
    hub_refresh_ttl_s: int = 3600
    hub_identity_token: bool = True  # POST /v1/login beside SIWE
    # chain
    chain: str = "volta"

    @property
    def chain_id(self) -> int:
        """The number of ``chain``."""
        return next(number for number, name in CHAIN_NAMES.items() if name == self.chain)

    @property
    def registry(self) -> str:
        """The address of the ERC-1056 registry on ``chain``."""
        return REGISTRIES[self.chain]
