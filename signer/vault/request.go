package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// call is one request.
type call struct {
	method string // GET, PUT, PATCH or DELETE
	path   string // below /v1/
	query  url.Values
	body   map[string]any
}

// answer is what Vault says to it.
type answer struct {
	Data json.RawMessage `json:"data"`
	Auth *struct {
		Token     string `json:"client_token"`
		TTL       int64  `json:"lease_duration"` // in seconds
		Renewable bool   `json:"renewable"`
	} `json:"auth"`
}

// send sends one request and reads the answer, within Timeout.
func (c *Client) send(ctx context.Context, a *api.Client, r call) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	var body []byte
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return answer{}, err
		}
	}
	response, err := r.do(ctx, a, body)
	if response != nil && response.Response != nil {
		defer response.Body.Close()
	}
	if err != nil {
		return answer{}, err
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, err
	}
	var got answer
	switch {
	case response.StatusCode == http.StatusNoContent:
		return answer{}, nil
	case response.StatusCode >= 300:
		return answer{}, fmt.Errorf("%w: status %d", errNoAnswer, response.StatusCode)
	case json.Unmarshal(text, &got) != nil:
		return answer{}, errNoAnswer
	}
	return got, nil
}

func (r call) do(ctx context.Context, a *api.Client, body []byte) (*api.Response, error) {
	switch r.method {
	case http.MethodPut:
		return a.Logical().WriteRawWithContext(ctx, r.path, body)
	case http.MethodPatch:
		return a.Logical().PatchRawWithContext(ctx, r.path, body)
	case http.MethodDelete:
		return a.Logical().DeleteRawWithContext(ctx, r.path)
	}
	return a.Logical().ReadRawWithDataWithContext(ctx, r.path, r.query)
}

const (
	// maxTries bounds how often what changes nothing is tried.
	maxTries = 3
	// firstPause is the wait before the second try; the next is four times that.
	firstPause = 100 * time.Millisecond
)

// do sends a request with the token. One 403 leads to one new login: the token
// may have been revoked. What changes nothing is tried again when Vault is in
// trouble, but not when it lets us wait.
func (c *Client) do(ctx context.Context, doing string, r call) (answer, error) {
	pause := firstPause
	relogged := false
	for try := 1; ; try++ {
		generation, err := c.current()
		if errors.Is(err, errEnded) {
			if err = c.login(ctx, generation, false); err == nil {
				generation, err = c.current()
			}
		}
		if err != nil {
			return answer{}, fmt.Errorf("%s %s: %w", doing, r.path, err)
		}
		if ctx.Err() != nil {
			return answer{}, explain(ctx, doing, r.path, ctx.Err())
		}
		a := c.api
		if r.method == http.MethodPatch {
			a = c.merging
		}
		got, cause := c.send(ctx, a, r)
		if cause == nil {
			c.metrics.request(nil)
			c.health.noteRequest(nil)
			return got, nil
		}
		err = explain(ctx, doing, r.path, cause)
		c.metrics.request(err)
		c.health.noteRequest(err)
		switch {
		case errors.Is(err, ErrDenied) && !relogged:
			relogged = true
			again := c.login(ctx, generation, true)
			if errors.Is(again, ErrUnavailable) {
				return answer{}, fmt.Errorf("%s %s: %w", doing, r.path, again)
			}
			if again != nil {
				return answer{}, err
			}
			try--
		case errors.Is(err, ErrUnavailable) && r.method == http.MethodGet && try < maxTries &&
			ctx.Err() == nil && !errors.Is(cause, context.DeadlineExceeded):
			select {
			case <-time.After(pause/2 + rand.N(pause)):
			case <-ctx.Done():
				return answer{}, explain(ctx, doing, r.path, ctx.Err())
			}
			pause *= 4
		default:
			return answer{}, err
		}
	}
}

// checkPath refuses what would be another path once the library has cleaned it.
// Errors read as the rest of a sentence about the path.
func checkPath(path string) error {
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || strings.Trim(part, pathOctets) != "" {
			return fmt.Errorf("%q is no path: want names of letters, digits and . _ - + @ with / between them", brief(path))
		}
	}
	return nil
}

const pathOctets = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+@"
