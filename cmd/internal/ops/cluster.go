package ops

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"postroad/queue"
)

// maxUses bounds an answer with all uses, or all limits: each bucket holds 64 MiB.
const maxUses = 128 << 20

// notice is the body of POST /v1/notices.
type notice struct {
	Topic string `json:"topic"`
	Name  string `json:"name"`
}

func (s *Server) nodes(w http.ResponseWriter, r *http.Request) {
	nodes, err := s.o.Queue.Nodes(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, nodes)
}

func (s *Server) uses(w http.ResponseWriter, r *http.Request) {
	uses, err := s.o.Queue.Uses(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, uses)
}

func (s *Server) spendings(w http.ResponseWriter, r *http.Request) {
	list, err := s.o.Queue.Spendings(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	prefix := r.URL.Query().Get("prefix")
	answer(w, http.StatusOK, slices.DeleteFunc(list, func(x queue.Spending) bool { return !strings.HasPrefix(x.Key, prefix) }))
}

func (s *Server) notify(w http.ResponseWriter, r *http.Request) {
	var n notice
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&n); err != nil {
		refuse(w, fmt.Errorf("read notice: %w", err))
		return
	}
	err := s.o.Queue.Notify(r.Context(), n.Topic, n.Name)
	if queue.IsBadNotice(err) {
		refuse(w, err)
		return
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, struct{}{})
}

// Nodes are the processes of the cluster that have announced themselves of late.
func (c *Client) Nodes(ctx context.Context) ([]queue.Node, error) {
	var nodes []queue.Node
	err := c.call(ctx, http.MethodGet, "/v1/nodes", nil, nil, &nodes)
	return nodes, err
}

// Uses are the passwords that clients used within 180 days, by client.
func (c *Client) Uses(ctx context.Context) ([]queue.Use, error) {
	var uses []queue.Use
	err := c.callWithin(ctx, maxUses, http.MethodGet, "/v1/uses", nil, nil, &uses)
	return uses, err
}

// Spendings are the limits, counted over the whole cluster, of which something was spent of late: those whose keys begin with prefix.
func (c *Client) Spendings(ctx context.Context, prefix string) ([]queue.Spending, error) {
	var list []queue.Spending
	err := c.callWithin(ctx, maxUses, http.MethodGet, "/v1/spendings", url.Values{"prefix": {prefix}}, nil, &list)
	return list, err
}

// Notify tells all processes that something changed, so that they look at once; see queue.Notify for topics and names.
func (c *Client) Notify(ctx context.Context, topic, name string) error {
	var done struct{}
	return c.call(ctx, http.MethodPost, "/v1/notices", nil, notice{topic, name}, &done)
}
