"""Sign in with this Hub: the page on which a user agrees, and what an app's server asks (OpenID Connect).

What is there is what Gradio's login button and Spaces use: the authorization code flow with a client secret, PKCE
where the app announces it, and identity tokens signed with a key that is made when it is first needed.
"""

from __future__ import annotations

import base64
import dataclasses
import hmac
import json
import time
from functools import cache
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.responses import JSONResponse, RedirectResponse, Response

from hubprune.localhub import render
from hubprune.localhub.auth import sign, verify
from hubprune.localhub.grants import ALWAYS, SCOPES, TOKEN_LIFETIME, Asked, Client
from hubprune.localhub.web import ApiError, Call, route

PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><circle cx="12" cy="9" r="4"/>'
    '<path d="M4 21a8 8 0 0 1 16 0"/></svg>'
)
_UNSTORED = {"Cache-Control": "no-store"}


def configuration(call: Call) -> Response:
    """GET /.well-known/openid-configuration."""
    return JSONResponse(
        {
            "issuer": call.url(),
            "authorization_endpoint": call.url("/oauth/authorize"),
            "token_endpoint": call.url("/oauth/token"),
            "userinfo_endpoint": call.url("/oauth/userinfo"),
            "jwks_uri": call.url("/oauth/jwks"),
            "scopes_supported": list(SCOPES),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }
    )


def jwks(call: Call) -> Response:
    """GET /oauth/jwks: the key that identity tokens are checked with."""
    return JSONResponse({"keys": [_key().as_dict(private=False, use="sig", alg="RS256")]})


def authorize_page(call: Call) -> Response:
    """GET /oauth/authorize: who asks for what, and a form to agree or not."""
    asked, client = _asked(call)
    if isinstance(asked, Response):
        return asked
    return _consent(call, asked, client, wrong=False)


def authorize(call: Call) -> Response:
    """POST /oauth/authorize: lead back to the app, with a code or with the refusal.

    The form holds what was asked and who was signed in, under a signature: a page elsewhere cannot send it.
    """
    fields = {name: values[0] for name, values in call.form().items()}
    facts = verify(call.hub.store.key, fields.get("asked", ""))
    if facts is None or facts.get("action") != "consent":
        raise ApiError(400, "this page is too old: go back to the app and sign in again")
    said = json.loads(str(facts["request"]))
    asked = Asked(**{**said, "scopes": tuple(said["scopes"])})
    client = call.hub.grants.client(asked.client)
    if client is None:
        raise ApiError(400, "the app that asked is not running any more")
    if fields.get("decision") != "agree":
        return _back(asked, error="access_denied", error_description="the user did not agree")
    user = str(facts["user"]) or call.hub.users.by_token(fields.get("token", "").strip())
    if not user:
        return _consent(call, asked, client, wrong=True)
    return _back(asked, code=call.hub.grants.issue_code(asked, user))


def token(call: Call) -> Response:
    """POST /oauth/token: trade a code for a token."""
    fields = {name: values[0] for name, values in call.form().items()}
    client = _client(call, fields)
    if client is None:
        return _refused("invalid_client", "the app is not known by this id and secret", 401)
    if fields.get("grant_type") != "authorization_code":
        return _refused("unsupported_grant_type", "grant_type is authorization_code")
    given = (fields.get(name, "") for name in ("code", "redirect_uri", "code_verifier"))
    traded = call.hub.grants.trade(client, *given)
    if traded is None:
        return _refused("invalid_grant", "the code is wrong, old, used, or of another sign-in")
    secret, grant, asked = traded
    answer = {
        "access_token": secret,
        "token_type": "bearer",
        "expires_in": TOKEN_LIFETIME,
        "scope": " ".join(asked.scopes),
        "id_token": _identity(call, client, grant.user, asked.nonce),
    }
    return JSONResponse(answer, headers=_UNSTORED)


def userinfo(call: Call) -> Response:
    """GET, POST /oauth/userinfo: who a token stands for."""
    return JSONResponse(_claims(call, call.signed_in()), headers=_UNSTORED)


def picture(call: Call) -> Response:
    """GET /oauth/picture.svg: what stands for every user."""
    return Response(PICTURE, media_type="image/svg+xml")


def _asked(call: Call) -> tuple[Asked | Response, Client]:
    """Read what an app asks; a mistake is told to the app, once it is known where it is."""
    client = call.hub.grants.client(call.query("client_id"))
    if client is None:
        raise ApiError(400, "no running app has this client_id: start it from its page, and sign in from there")
    redirect = call.query("redirect_uri") or ""
    if not client.leads_to(redirect):
        raise ApiError(400, f"{client.name} may not be led back to {redirect!r:.200}")
    wanted = tuple(dict.fromkeys([*ALWAYS, *(call.query("scope") or "").split()]))
    asked = Asked(
        client=client.id,
        redirect=redirect,
        scopes=wanted,
        state=call.query("state") or "",
        nonce=call.query("nonce") or "",
        challenge=call.query("code_challenge") or "",
    )
    problem = None
    if call.query("response_type") != "code":
        problem = "unsupported_response_type", "response_type is code"
    elif not asked.state:
        problem = "invalid_request", "state must be given, by which the app knows its own sign-in"
    elif asked.challenge and call.query("code_challenge_method") != "S256":
        problem = "invalid_request", "code_challenge_method is S256"
    elif not client.scopes.issuperset(wanted):
        problem = "invalid_scope", f"the app may not ask for {', '.join(sorted({*wanted} - client.scopes))}"
    if problem is not None:
        return _back(asked, error=problem[0], error_description=problem[1]), client
    return asked, client


def _consent(call: Call, asked: Asked, client: Client, *, wrong: bool) -> Response:
    user = call.user if call.request.method == "GET" else None
    ticket = sign(call.hub.store.key, action="consent", user=user or "", request=json.dumps(dataclasses.asdict(asked)))
    target = urlsplit(asked.redirect)
    return render.page(
        call.request,
        "authorize.html",
        user,
        403 if wrong else 200,
        form_action=f"{target.scheme}://{target.netloc}",
        client=client,
        place=target.netloc,
        scopes=[(scope, SCOPES[scope]) for scope in asked.scopes if scope not in ALWAYS],
        ticket=ticket,
        wrong=wrong,
    )


def _back(asked: Asked, **facts: str) -> Response:
    joint = "&" if urlsplit(asked.redirect).query else "?"
    query = urlencode({**facts, **({"state": asked.state} if asked.state else {})})
    return RedirectResponse(f"{asked.redirect}{joint}{query}", 303, headers=_UNSTORED)


def _client(call: Call, fields: dict[str, str]) -> Client | None:
    """Return the app that proves who it is, by a Basic header or by fields of the form."""
    name, secret = fields.get("client_id", ""), fields.get("client_secret", "")
    scheme, _, value = call.request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
        except ValueError:
            return None
        name, secret = unquote(name), unquote(secret)
    client = call.hub.grants.client(name)
    known = client is not None and hmac.compare_digest(client.secret.encode(), secret.encode())
    return client if known else None


def _refused(error: str, description: str, status: int = 400) -> JSONResponse:
    headers = {**_UNSTORED, **({"WWW-Authenticate": "Basic"} if status == 401 else {})}
    return JSONResponse({"error": error, "error_description": description}, status, headers)


def _claims(call: Call, user: str) -> dict[str, Any]:
    return {
        "sub": user,
        "name": user,
        "preferred_username": user,
        "profile": call.url(f"/{user}"),
        "picture": call.url("/oauth/picture.svg"),
        "isPro": user in call.hub.users.pro,
    }


def _identity(call: Call, client: Client, user: str, nonce: str) -> str:
    now = int(time.time())
    claims = {"iss": call.url(), "aud": client.id, "iat": now, "auth_time": now, "exp": now + TOKEN_LIFETIME}
    header = {"alg": "RS256", "kid": _key().kid}
    return jwt.encode(header, {**claims, **_claims(call, user), **({"nonce": nonce} if nonce else {})}, _key())


@cache
def _key() -> RSAKey:
    """The key of this process; the apps whose sign-ins it signs are its own."""
    return RSAKey.generate_key(2048, auto_kid=True)


routes = [
    route("/.well-known/openid-configuration", configuration),
    route("/oauth/jwks", jwks),
    route("/oauth/authorize", authorize_page, page=True),
    route("/oauth/authorize", authorize, "POST", page=True),
    route("/oauth/token", token, "POST"),
    route("/oauth/userinfo", userinfo, "GET", "POST"),
    route("/oauth/picture.svg", picture),
]
