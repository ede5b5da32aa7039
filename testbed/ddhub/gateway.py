"""A participant as the deployed client gateway is one: the other end of whatever the agent sends or reads.

Made with eth_keys and cryptography from the specification of the Data Hub, section 2; shares no code with the agent.
It tries once: what is not 2xx comes as httpx.HTTPStatusError. Of its own accord it only logs in, and again after 401.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from eth_keys.datatypes import PrivateKey, Signature
from eth_utils.crypto import keccak

Padding = Literal["oaep", "pkcs1v15"]
_PADDINGS: Mapping[Padding, rsa_padding.AsymmetricPadding] = {
    "oaep": rsa_padding.OAEP(rsa_padding.MGF1(hashes.SHA1()), hashes.SHA1(), None),
    "pkcs1v15": rsa_padding.PKCS1v15(),
}
_SYMMETRIC = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a search: whether its sender's key made the signature, and its text (None: see ``problem``)."""

    message: dict[str, Any]
    verified: bool
    text: str | None
    problem: str = ""


class Gateway:
    """One participant, by its private key (0x and hex). ``rsa_key`` is made when it is first needed.

    ``padding``: the one that it knows. Gateways up to 1.9.1 wrap and unwrap with PKCS1-v1_5, newer ones with OAEP, and
    neither reads the other's.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        chain: str = "volta",
        rsa_key: rsa.RSAPrivateKey | None = None,
        padding: Padding = "oaep",
        tls: ssl.SSLContext | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._key = PrivateKey(bytes.fromhex(key.removeprefix("0x")))
        self.address = self._key.public_key.to_checksum_address()
        self.did = f"did:ethr:{chain}:{self.address}"
        self.keys: dict[tuple[str, str], str] = {}  # sender, clientGatewayMessageId: wrapped key
        self.tokens: dict[str, Any] = {}
        self.padding = padding
        self._rsa = rsa_key
        self._now = now
        self._http = httpx.AsyncClient(base_url=url, verify=tls or False, timeout=60, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    # ---- keys ----

    @property
    def signature_key(self) -> str:
        """What stands in the DID document as dsb-signature-key."""
        return "0x04" + self._key.public_key.to_bytes().hex()

    @property
    def rsa_key(self) -> rsa.RSAPrivateKey:
        """The RSA key; 2048 bits, for it is made in tests."""
        if self._rsa is None:
            self._rsa = rsa.generate_private_key(65537, 2048)
        return self._rsa

    @property
    def encryption_key(self) -> str:
        """What stands in the DID document as dsb-symmetric-encryption."""
        return (
            self.rsa_key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
            .decode()
        )

    # ---- login ----

    def identity_token(self, **claims: Any) -> str:
        """A token of 300 s; ``claims`` replace its own, None leaves one out."""
        now = int(self._now())
        own = {"iss": self.did, "claimData": {"blockNumber": 999999999999}, "iat": now, "exp": now + 300}
        payload = {name: value for name, value in (own | claims).items() if value is not None}
        signed = f"{_b64url(_compact({'alg': 'ES256', 'typ': 'JWT'}))}.{_b64url(_compact(payload))}"
        text = "0x" + self.personal_sign(keccak(text=signed))
        return f"{signed}.{_b64url(text.encode())}"

    def personal_sign(self, message: bytes | str) -> str:
        """EIP-191, in hex without 0x."""
        raw = message.encode() if isinstance(message, str) else message
        return self._signed(keccak(b"\x19Ethereum Signed Message:\n%d" % len(raw) + raw))

    async def login(self) -> None:
        """A full login, then initExtChannel as the gateway does."""
        await self.authenticate()
        await self.post("/channel/initExtChannel")

    async def authenticate(self) -> None:
        """A full login only."""
        answer = await self._http.post("/auth/login", json={"identityToken": self.identity_token()})
        self.tokens = answer.raise_for_status().json()

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Any request with the access token, whatever the answer; as it is without login."""
        headers = {"Authorization": f"Bearer {self.tokens['access_token']}"} if self.tokens else {}
        return await self._http.request(method, path, headers={**headers, **options.pop("headers", {})}, **options)

    async def _done(self, method: str, path: str, **options: Any) -> Any:
        answer = await self.ask(method, path, **options)
        if answer.status_code == 401:
            await self.login()
            answer = await self.ask(method, path, **options)
        return answer.raise_for_status().json()

    async def post(self, path: str, body: Any = None) -> Any:
        """The JSON of a POST."""
        return await self._done("POST", path, json=body)

    async def get(self, path: str, **query: Any) -> Any:
        """The JSON of a GET."""
        return await self._done("GET", path, params=query)

    # ---- sending ----

    def sign(self, text: str) -> str:
        """The signature of a payload: raw ECDSA over Keccak-256."""
        return "0x" + self._signed(keccak(text=text))

    def _signed(self, digest: bytes) -> str:
        made = self._key.sign_msg_hash(digest).to_bytes()
        return made[:64].hex() + f"{made[64] + 27:02x}"

    async def send(
        self,
        topic_id: str,
        payload: str,
        recipients: Mapping[str, str],
        *,
        version: str = "1.0.0",
        padding: Padding | None = None,
        transaction_id: str | None = None,
        keys_first: bool = True,
    ) -> Any:
        """Encrypt for ``recipients`` (DID: their PEM), send keys and message; the broker's answer to that.

        ``padding``: another than its own.
        """
        key, message_id = uuid.uuid4().hex + uuid.uuid4().hex, str(uuid.uuid4())
        text, how = encrypt(payload, bytes.fromhex(key)), padding or self.padding

        async def send_keys() -> None:
            for did, pem in recipients.items():
                wrapped = {"fqcn": did, "clientGatewayMessageId": message_id, "payload": wrap(key, pem, how)}
                await self.post("/messages/internal", wrapped)

        if keys_first:
            await send_keys()
        answer = await self.post(
            "/messages",
            {
                "fqcns": [*recipients],
                **({} if transaction_id is None else {"transactionId": transaction_id}),
                "payload": text,
                "topicId": topic_id,
                "topicVersion": version,
                "signature": self.sign(text),
                "clientGatewayMessageId": message_id,
                "payloadEncryption": True,
            },
        )
        if not keys_first:
            await send_keys()
        return answer

    # ---- receiving ----

    async def senders(self, *dids: str, hub: str) -> dict[str, str]:
        """The signature keys of participants as an SSI Hub's documents have them (``hub``: its URL without /v1); of who
        has not published both of his keys a gateway takes nothing.
        """
        login = await self._http.post(f"{hub}/v1/login", json={"identityToken": self.identity_token()})
        bearer = {"Authorization": f"Bearer {login.raise_for_status().json()['token']}"}
        found = {}
        for did in dids:
            document = (await self._http.get(f"{hub}/v1/DID/{did}", headers=bearer)).raise_for_status().json()
            keys = {entry["id"]: entry.get("publicKeyHex") for entry in document["publicKey"]}
            if f"{did}#dsb-symmetric-encryption" in keys and (key := keys.get(f"{did}#dsb-signature-key")):
                found[did] = str(key)
        return found

    async def receive(
        self,
        topic_ids: Sequence[str],
        senders: Mapping[str, str],
        *,
        client_id: str = "gateway",
        amount: int = 100,
        acknowledge: bool = True,
    ) -> list[Received]:
        """Drain the keys, search, verify, decrypt, acknowledge. ``senders``: DID: their signature key."""
        await self._drain_keys()
        asked = {"fqcnTopicList": [*topic_ids], "senderId": [*senders], "clientId": client_id, "amount": amount}
        messages = sorted(await self.post("/messages/search", asked), key=lambda each: int(each["timestampNanos"]))
        if any((each["senderDid"], each["clientGatewayMessageId"]) not in self.keys for each in messages):
            await self._drain_keys()  # it was sent between the two searches
        received = [self._open(each, senders) for each in messages]
        if messages and acknowledge:
            ids = [each["messageId"] for each in messages]
            await self.post("/messages/ack", {"messageIds": ids, "clientId": client_id})
        return received

    async def _drain_keys(self) -> None:
        while found := await self.post("/messages/internal/search", {"clientId": "gatewaykeys", "amount": 100}):
            self.keys |= {(each["senderDid"], each["clientGatewayMessageId"]): each["payload"] for each in found}

    def _open(self, message: dict[str, Any], senders: Mapping[str, str]) -> Received:
        payload, sender = message["payload"], message["senderDid"]
        if not is_signed_by(payload, message["signature"], senders.get(sender, "")):
            return Received(message, False, None if message["payloadEncryption"] else payload, "bad signature")
        if not message["payloadEncryption"]:
            return Received(message, True, payload)
        wrapped = self.keys.get((sender, message["clientGatewayMessageId"]))
        if wrapped is None:
            return Received(message, True, None, "no symmetric key")
        try:
            key = unwrap(wrapped, self.rsa_key, self.padding)
            return Received(message, True, decrypt(payload, bytes.fromhex(key)))
        except ValueError as error:
            return Received(message, True, None, str(error))


def encrypt(text: str, key: bytes) -> str:
    """AES-256-CBC as the gateway writes it."""
    iv, padder = uuid.uuid4().bytes, PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    padded = padder.update(text.encode()) + padder.finalize()
    return f"{iv.hex()}:{(encryptor.update(padded) + encryptor.finalize()).hex()}"


def decrypt(payload: str, key: bytes) -> str:
    """The inverse. Raises ValueError."""
    iv, _, text = payload.partition(":")
    decryptor, unpadder = Cipher(algorithms.AES(key), modes.CBC(bytes.fromhex(iv))).decryptor(), PKCS7(128).unpadder()
    padded = decryptor.update(bytes.fromhex(text)) + decryptor.finalize()
    return (unpadder.update(padded) + unpadder.finalize()).decode()


def wrap(key: str, pem: str, padding: Padding) -> str:
    """The 64 hex digits of a key for the owner of an RSA key."""
    public = serialization.load_pem_public_key(pem.encode())
    if not isinstance(public, rsa.RSAPublicKey):
        raise ValueError("no RSA key")
    return base64.b64encode(public.encrypt(key.encode(), _PADDINGS[padding])).decode()


def unwrap(wrapped: str, private: rsa.RSAPrivateKey, padding: Padding) -> str:
    """The 64 hex digits. Raises ValueError."""
    try:
        text = private.decrypt(base64.b64decode(wrapped), _PADDINGS[padding]).decode("ascii")
    except ValueError:
        text = ""
    if _SYMMETRIC.fullmatch(text):  # a wrong PKCS1-v1_5 gives anything
        return text
    raise ValueError("the key cannot be unwrapped")


def is_signed_by(text: str, signature: str, public_key: str) -> bool:
    """Whether the gateway takes a signature: the key it recovers, compared as text."""
    try:
        raw = bytes.fromhex(signature.removeprefix("0x"))
        if not signature.startswith("0x") or len(raw) != 65:
            return False
        v = raw[64] - 27 if raw[64] >= 27 else raw[64]
        key = Signature(raw[:64] + bytes([v])).recover_public_key_from_msg_hash(keccak(text=text))
    except Exception:  # noqa: BLE001  # eth_keys has many ways to say that it is none
        return False
    return "0x04" + key.to_bytes().hex() == public_key


def _b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
