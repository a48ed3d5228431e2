package ops

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"

	"postroad/queue"
)

// ErrRefused says that the server did not take the request: the selection or the id is wrong.
var ErrRefused = errors.New("refused")

// remoteError says what the server said; errors.Is finds its cause.
type remoteError struct {
	text  string
	cause error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.cause }

// maxLine bounds one line of a stream: a job with 100 recipients has some 100 KiB.
const maxLine = 4 << 20

// Client speaks to a Server through its unix socket.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client; it connects when it is used.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// List yields the jobs that match, at most limit of them (0: all). An empty selection is everything.
func (c *Client) List(ctx context.Context, sel Selection, limit int) iter.Seq2[queue.Entry, error] {
	query := sel.query()
	if limit > 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	return lines[queue.Entry](ctx, c, "/v1/queue", query)
}

// Trace yields the events that match, oldest first.
func (c *Client) Trace(ctx context.Context, f TraceFilter) iter.Seq2[queue.Event, error] {
	return lines[queue.Event](ctx, c, "/v1/trace", f.query())
}

// Counts is the queue at a glance.
func (c *Client) Counts(ctx context.Context) (queue.Counts, error) {
	var counts queue.Counts
	err := c.call(ctx, http.MethodGet, "/v1/counts", nil, nil, &counts)
	return counts, err
}

// Version is that of the running server.
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct{ Version string }
	err := c.call(ctx, http.MethodGet, "/v1/version", nil, nil, &v)
	return v.Version, err
}

// Do gives an order.
func (c *Client) Do(ctx context.Context, a Action, o Order) (Outcome, error) {
	var outcome Outcome
	err := c.call(ctx, http.MethodPost, "/v1/queue/"+string(a), nil, o, &outcome)
	return outcome, err
}

func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, into any) error {
	return c.callWithin(ctx, maxLine, method, path, query, body, into)
}

// callWithin is call with another bound of the answer, in octets.
func (c *Client) callWithin(ctx context.Context, most int64, method, path string, query url.Values, body, into any) error {
	resp, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(into); err != nil {
		return fmt.Errorf("read the answer of %s: %w", path, err)
	}
	return nil
}

// send makes a request and turns every answer but success into an error.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("print request: %w", err)
		}
		reader = bytes.NewReader(text)
	}
	u := url.URL{Scheme: "http", Host: "postroad", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), reader)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	var f failure
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if json.Unmarshal(text, &f) != nil || f.Error == "" {
		f.Error = fmt.Sprintf("%s answered %s", path, resp.Status)
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, &remoteError{f.Error, queue.ErrNotFound}
	}
	if resp.StatusCode/100 == 4 {
		return nil, &remoteError{f.Error, ErrRefused}
	}
	return nil, errors.New(f.Error)
}

// explain says what to do when nobody answers.
func (c *Client) explain(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no admin socket %s: is `postroad serve` running, with the same configuration (-c) or data_dir?", c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens on %s: `postroad serve` has ended without removing it; start it again", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission for %s: become the user that runs `postroad serve`", c.socket)
	}
	return fmt.Errorf("ask the server at %s: %w", c.socket, err)
}

// lines reads a stream of objects. A line with an error ends it.
func lines[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		resp, err := c.send(ctx, http.MethodGet, path, query, nil)
		if err != nil {
			yield(zero, err)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		scanner := bufio.NewScanner(resp.Body)
		scanner.Buffer(make([]byte, 64<<10), maxLine)
		for scanner.Scan() {
			var item T
			var f failure
			if err := json.Unmarshal(scanner.Bytes(), &f); err == nil && f.Error != "" {
				yield(zero, errors.New(f.Error))
				return
			}
			if err := json.Unmarshal(scanner.Bytes(), &item); err != nil {
				yield(zero, fmt.Errorf("read the answer of %s: %w", path, err))
				return
			}
			if !yield(item, nil) {
				return
			}
		}
		if err := scanner.Err(); err != nil {
			yield(zero, fmt.Errorf("read the answer of %s: %w", path, err))
		}
	}
}
