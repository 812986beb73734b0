"""Requests to a registry: who we are, what is tried again and how long after, and errors in one line.

A request is tried again where the registry asks for that (429), has a fault of its own (5xx) or the
connection breaks; never where it refuses. Times are taken from the monotonic clock or from the registry's
own ``Date``, so that a wrong clock of this machine decides nothing here.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import json
import random
import re
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlencode, urljoin, urlsplit

import requests
import requests.adapters
import requests.auth
import tenacity
from urllib3.exceptions import NewConnectionError

from llama_images.adapters.credentials import Credentials, Login, nobody
from llama_images.adapters.network import causes, is_loopback, reason
from llama_images.errors import BadAnswer, Missing, OutsideError, Refused

TRIES: Final = 5
"""How often a request is made before it is given up."""

LONGEST_WAIT: Final = 120.0
"""Seconds; a registry that asks for more is not waited for."""

_FIRST_WAIT: Final = 0.5
_ERROR_BYTES: Final = 64 << 10
_SAID: Final = 200  # characters of a registry's own words
_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504})
_CLIENT: Final = "llama-images"


class Again(OutsideError):  # noqa: N818 - says what is wrong, as CheckFailed does
    """It may go well another time."""

    after: float | None = None
    """Seconds that the registry asks to wait."""


class Readable(Protocol):
    """What is sent as it is read."""

    def __len__(self) -> int:
        """Bytes in all."""

    def read(self, size: int = -1, /) -> bytes: ...


Body = Callable[[], contextlib.AbstractContextManager[bytes | Readable]]
"""Opens a request's body, from its start for every try."""


@dataclass(slots=True)
class _Token:
    value: str
    until: float
    """By the monotonic clock."""


class _Authorize(requests.auth.AuthBase):
    """Sets the header, or leaves it out: requests would else look into ~/.netrc by itself."""

    def __init__(self, value: str | None) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._value is not None:
            request.headers["Authorization"] = self._value
        return request


class SafeSession(requests.Session):
    """Follows a registry's redirects without giving anything away: no password, and nothing without TLS.

    requests would look into ~/.netrc for each host that it is sent to.
    """

    def __init__(self, is_safe: Callable[[str], bool]) -> None:
        super().__init__()
        self._is_safe = is_safe

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Take the header away where the redirect leads to another host; put none in its place."""
        there, here = str(prepared_request.url), str(response.request.url)
        if "Authorization" in prepared_request.headers and self.should_strip_auth(here, there):  # type: ignore[no-untyped-call]
            del prepared_request.headers["Authorization"]

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Where an answer sends us. Raises OutsideError where that is no place to go."""
        target = super().get_redirect_target(resp)
        if target is not None and not self._is_safe(there := urljoin(resp.url, target)):
            raise _unsafe(urlsplit(resp.url).netloc, there)
        return target


def _unsafe(name: str, address: str) -> BadAnswer:
    return BadAnswer(
        f"{name} leads to {urlsplit(address).netloc or 'no host'} without TLS",
        hint="only a registry on this machine may do without",
    )


class _Trusting(requests.adapters.HTTPAdapter):
    """Trusts a certificate authority besides those that are trusted anyway."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, **kwargs, ssl_context=self._context)


class RegistryHttp:
    """Makes requests to the registry at ``base_url``, such as ``https://ghcr.io``.

    ``login`` is asked for credentials when the registry wants some. ``authorities`` is a file with
    certificate authorities to trust besides the usual ones. ``on_wait`` is told why and how long there is a
    pause.
    """

    def __init__(
        self,
        base_url: str,
        *,
        login: Login = nobody,
        login_name: str | None = None,
        authorities: Path | None = None,
        timeout: float = 30.0,
        tries: int = TRIES,
        on_wait: Callable[[str], None] = lambda _text: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.base = base_url.rstrip("/")
        self.name = urlsplit(base_url).netloc or base_url
        self._login = login
        self._login_name = login_name or self.name
        self._authorities = authorities
        self._timeout = timeout
        self._tries = tries
        self._on_wait = on_wait
        self._sleep = sleep
        self._credentials: Credentials | None = None
        self._asked_for_login = False
        self._basic = False
        self._tokens: dict[str, _Token] = {}
        self._context: ssl.SSLContext | None = None

    def retrying(self) -> tenacity.Retrying:
        """What repeats a piece of work of several requests, as each request is repeated."""
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Again),
            stop=tenacity.stop_after_attempt(self._tries),
            wait=self._wait,
            sleep=self._sleep,
            before_sleep=self._tell,
            reraise=True,
        )

    def ask(
        self,
        method: str,
        address: str,
        what: str,
        *,
        scope: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        accepted: Collection[int] = (200,),
        stream: bool = False,
        again: bool = True,
    ) -> requests.Response:
        """The answer to a request, whose status is one of ``accepted``.

        ``address`` is a path or a whole address; ``what`` is what messages call the thing asked for.
        ``scope`` names what must be allowed, such as ``me/image:pull``, or several: a token is kept for each.
        Without ``again`` a fault is raised as Again at once. Raises OutsideError, in one line, for everything
        else.
        """

        def once() -> requests.Response:
            return self._once(method, address, what, scope, headers or {}, body, accepted, stream)

        if not again:
            return once()
        try:
            answer: requests.Response = self.retrying()(once)
        except Again as error:
            raise self.given_up(error) from None
        return answer

    def given_up(self, error: Again) -> OutsideError:
        """The error after the last try."""
        return OutsideError(f"{error.message} ({self._tries} tries)", hint=error.hint)

    def _once(
        self,
        method: str,
        address: str,
        what: str,
        scope: str,
        headers: Mapping[str, str],
        body: Body | None,
        accepted: Collection[int],
        stream: bool,
    ) -> requests.Response:
        url = urljoin(f"{self.base}/", address)
        for last in (False, True):
            with contextlib.nullcontext() if body is None else body() as data:
                answer = self._send(method, url, headers, data, self._authorization(url, scope))
            if answer.status_code != 401 or last:
                break
            with contextlib.ExitStack() as done:
                done.callback(answer.close)
                if not self._answer_challenge(answer.headers.get("WWW-Authenticate", ""), scope, what):
                    done.pop_all()  # the answer is read below
                    break
        if answer.status_code in accepted:
            if not stream:
                with answer, self._reading():
                    _ = answer.content
            return answer
        raise self._error(answer, what)

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        data: bytes | Readable | None,
        auth: str | None,
    ) -> requests.Response:
        parts = urlsplit(url)
        if not self._is_safe(url):
            raise _unsafe(self.name, url)
        with SafeSession(self._is_safe) as session, self._reading():
            if is_loopback(parts.hostname):
                session.trust_env = False  # a proxy can't reach this machine's loopback
            if parts.scheme == "https" and self._authorities is not None:
                session.mount("https://", _Trusting(self._trusting()))
            return session.request(
                method,
                url,
                # Each request has a session, and so a connection, of its own.
                headers={"User-Agent": _CLIENT, "Connection": "close", **headers},
                data=data,
                auth=_Authorize(auth),
                timeout=self._timeout,
                stream=True,
                allow_redirects=method in ("GET", "HEAD"),
            )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns requests' errors into ours, also while an answer's body is read."""
        try:
            yield
        except requests.exceptions.SSLError as error:
            unreachable = self._unreachable(OutsideError, error)
            if "clock" in unreachable.message:
                unreachable.hint = "is this machine's clock right?"
            elif "certificate" in unreachable.message:
                unreachable.hint = "SSL_CERT_FILE names further certificate authorities, in PEM form"
            raise unreachable from None
        except requests.TooManyRedirects as error:
            if error.response is not None:
                error.response.close()
            raise self._unreachable(OutsideError, error) from None
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            # Where nobody listens, or no such host is known, waiting some seconds helps nobody.
            absent = any(isinstance(cause, NewConnectionError) for cause in causes(error))
            raise self._unreachable(OutsideError if absent else Again, error) from None
        except requests.RequestException as error:
            raise self._unreachable(OutsideError, error) from None

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """For who reads a streamed answer: a broken connection is Again, and so on."""
        return self._reading()

    def _unreachable(self, kind: type[OutsideError], error: requests.RequestException) -> OutsideError:
        return kind(
            f"the registry {self.name} can't be reached: {reason(error)}",
            hint="check its address, the network and the proxy settings",
        )

    def _trusting(self) -> ssl.SSLContext:
        if self._context is None:
            assert self._authorities is not None
            try:
                self._context = ssl.create_default_context()
                self._context.load_verify_locations(self._authorities)
            except OSError:  # ssl.SSLError is one
                raise OutsideError(
                    f"{self._authorities} holds no certificate authority", hint="a file in PEM form is needed"
                ) from None
        return self._context

    # --- who we are ---

    def _authorization(self, url: str, scope: str) -> str | None:
        if urlsplit(url)[:2] != urlsplit(self.base)[:2]:
            return None  # another host: what it may know stands in the address that the registry gave
        token = self._tokens.get(scope)
        if token is not None and time.monotonic() < token.until:
            return f"Bearer {token.value}"
        if self._basic and self._credentials is not None:
            return _basic(self._credentials)
        return None

    def _answer_challenge(self, challenge: str, scope: str, what: str) -> bool:
        """Get what the registry wants to see; False where there is nothing (more) to show."""
        if not self._asked_for_login:
            self._credentials, self._asked_for_login = self._login(self._login_name), True
        kind, parameters = parse_challenge(challenge)
        realm = parameters.get("realm", "")
        if kind == "bearer" and realm and self._is_safe(urljoin(f"{self.base}/", realm)):
            self._tokens[scope] = self._token(parameters, scope, what)
            return True
        if (
            kind == "basic"
            and self._credentials is not None
            and self._credentials.password
            and not self._basic
        ):
            self._basic = True
            return True
        return False

    def _is_safe(self, url: str) -> bool:
        """Whether a request may go there: over TLS, or from a registry on this machine to this machine.

        Addresses come from the network too: redirects, places of uploads, services that give tokens.
        """
        parts = urlsplit(url)
        if parts.scheme == "https":
            return bool(parts.hostname)
        own = is_loopback(urlsplit(self.base).hostname)
        return parts.scheme == "http" and own and is_loopback(parts.hostname)

    def _token(self, parameters: Mapping[str, str], scope: str, what: str) -> _Token:
        known = self._credentials
        # What the registry names for this request, and what we are going to need.
        scopes = [parameters["scope"]] if "scope" in parameters else []
        scopes += [f"repository:{one}" for one in scope.split() if f"repository:{one}" not in scopes]
        fields = [("service", parameters["service"])] if "service" in parameters else []
        url = urljoin(f"{self.base}/", parameters["realm"])
        if known is not None and known.identity_token:
            # A form has each field once.
            fields += [("scope", " ".join(scopes)), ("grant_type", "refresh_token")]
            fields += [("refresh_token", known.identity_token), ("client_id", _CLIENT)]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._send("POST", url, headers, urlencode(fields).encode(), None)
        else:
            fields += [("scope", one) for one in scopes]
            fields += [] if known is None else [("account", known.user)]
            basic = None if known is None else _basic(known)
            answer = self._send(
                "GET", f"{url}{'&' if '?' in url else '?'}{urlencode(fields)}", {}, None, basic
            )
        if answer.status_code != 200:
            raise self._error(answer, what)
        with answer, self._reading():
            try:
                content = answer.json()
                value = str(content.get("token") or content["access_token"])
                seconds = float(content.get("expires_in") or 60)
                if not re.fullmatch(r"[!-~]+", value):
                    raise ValueError(value)
            except (requests.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
                raise OutsideError(
                    f"{urlsplit(url).netloc} gave no token for {self.name}", hint="is it the registry's own?"
                ) from None
        return _Token(value=value, until=time.monotonic() + max(10.0, seconds * 0.9))

    # --- what went wrong ---

    def _error(self, answer: requests.Response, what: str) -> OutsideError:
        """The error for an answer that was not wanted; reads its body and closes it."""
        status = answer.status_code
        code, said = self._said(answer)
        if status == 404:
            return Missing(f"{self.name} has no {what}", hint="check the name and the tag")
        words = f"{self.name} answered {status} {answer.reason} for {what}{said}"
        if "no space left on device" in said or "disk is full" in said:
            return OutsideError(
                f"{self.name} has no room for {what}: its disk is full", hint="free space there, then go on"
            )
        if status in _AGAIN:
            error = Again(words, hint="look at the registry's log")
            error.after = retry_after(answer.headers)
            if status == 429:
                error.hint = "it limits how often it may be asked; the same command goes on later"
            if error.after is not None and error.after > LONGEST_WAIT:
                return OutsideError(f"{words}: it asks to wait {error.after:.0f} s", hint=error.hint)
            return error
        refused = Refused(words, hint="look at the registry's log")
        refused.status, refused.code = status, code
        if status == 401:
            known = self._credentials is not None
            refused.hint = (
                f"it does not take the login that is stored: docker login {self._login_name}"
                if known
                else f"log in first: docker login {self._login_name}"
            )
        elif status == 403:
            refused.hint = "may this account write there? Does the namespace exist?"
        elif 300 <= status < 400:
            refused.hint = "name the registry by the address that it moves to"
        return refused

    def _said(self, answer: requests.Response) -> tuple[str, str]:
        """The registry's own code and words for an error, shortened, without anything secret."""
        data = b""
        with answer, contextlib.suppress(requests.RequestException):
            for chunk in answer.iter_content(8192):
                data += chunk
                if len(data) > _ERROR_BYTES:
                    break
        try:
            first = json.loads(data)["errors"][0]
            code, message, detail = (
                str(first.get("code", "")),
                str(first.get("message", "")),
                first.get("detail"),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return "", ""
        if "'Err': 28" in str(detail) or "no space left on device" in str(detail):
            return code, ": no space left on device"
        text = re.sub(r"[^\x20-\x7e]+", " ", message or code)
        for secret in self._credentials.secrets if self._credentials else ():
            text = text.replace(secret, "…")
        return code, f": {text[:_SAID]}" if text.strip() else ""

    # --- waiting ---

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, Again) and error.after is not None:
            return error.after
        # Not all at the same time, where several of us were sent away together.
        return float(_FIRST_WAIT * 2 ** (state.attempt_number - 1) * random.uniform(1.0, 1.5))  # noqa: S311

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, Again) and state.next_action is not None:
            self._on_wait(f"{error.message}; again in {state.next_action.sleep:.1f} s")


def _basic(known: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{known.user}:{known.password}".encode()).decode()


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """``Bearer realm="…",service="…"`` as its kind in lower case and its parameters; a token goes first."""
    found: dict[str, dict[str, str]] = {}
    for kind, rest in re.findall(
        r'(Bearer|Basic)\s+((?:[\w-]+="[^"]*"(?:\s*,\s*)?)*)', header, re.IGNORECASE
    ):
        found.setdefault(kind.lower(), dict(re.findall(r'([\w-]+)="([^"]*)"', rest)))
    for kind in ("bearer", "basic"):
        if kind in found:
            return kind, found[kind]
    return "", {}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the registry asks to wait; a time is compared with its own clock, not with ours."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
        now = email.utils.parsedate_to_datetime(headers["Date"])
        # A time in the zone -0000 has none, and can't be compared.
        return max(0.0, (until - now).total_seconds())
    except (KeyError, ValueError, TypeError):
        return None
