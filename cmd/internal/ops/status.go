package ops

import (
	"context"
	"errors"
	"net/http"
	"time"

	"postroad/queue"
)

const (
	statusAge   = 2 * time.Second  // how old an answer may be: several who ask cost no more than one
	statusLimit = 20 * time.Second // to find everything out
	nodesLimit  = 5 * time.Second
)

// Status is the whole cluster at a glance, as one process sees it.
type Status struct {
	At        time.Time       `json:"at"`
	Well      bool            `json:"well"`
	Attention []Attention     `json:"attention"`          // what is wrong, the cause before what follows from it
	Asked     string          `json:"asked"`              // name of the process that answers
	Embedded  bool            `json:"embedded,omitempty"` // the queue is stored in that process
	Nodes     []queue.Node    `json:"nodes"`
	Queue     *queue.Overview `json:"queue,omitempty"`       // none: it does not answer
	QueueErr  string          `json:"queue_error,omitempty"` // why
	NodesErr  string          `json:"nodes_error,omitempty"` // why Nodes has the answering process only
}

// Attention is something that is wrong.
type Attention struct {
	Part  string    `json:"part"`
	Text  string    `json:"text"`
	Nodes []string  `json:"nodes,omitempty"` // where, if it is not the cluster as a whole
	Since time.Time `json:"since,omitzero"`
	Do    string    `json:"do,omitempty"`
}

// Status asks for the state of the cluster.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	st := new(Status)
	if err := c.call(ctx, http.MethodGet, "/v1/status", nil, nil, st); err != nil {
		return nil, err
	}
	return st, nil
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	st, err := s.gather(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, st)
}

// gather finds everything out, or takes what was found out a moment ago. One does it at a time.
func (s *Server) gather(ctx context.Context) (*Status, error) {
	select {
	case s.gathering <- struct{}{}:
		defer func() { <-s.gathering }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.lastStatus != nil && time.Since(s.lastStatus.At) < statusAge {
		return s.lastStatus, nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	st := &Status{At: time.Now(), Embedded: s.o.Embedded}
	overview, err := s.o.Queue.Overview(ctx)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return nil, ctx.Err() // nobody wants it any more
	case err != nil:
		st.QueueErr = err.Error()
	default:
		st.Queue = &overview
	}
	s.gatherNodes(ctx, st)
	st.judge(time.Now())
	st.At = time.Now()
	s.lastStatus = st
	return st, nil
}

// gatherNodes lists the processes. What this one says of itself is newer than what it has announced.
func (s *Server) gatherNodes(ctx context.Context, st *Status) {
	ctx, cancel := context.WithTimeout(ctx, nodesLimit)
	defer cancel()
	nodes, err := s.o.Queue.Nodes(ctx)
	if err != nil {
		st.NodesErr = err.Error()
	}
	st.Nodes = nodes
	if s.o.Self == nil {
		return
	}
	self := s.o.Self()
	st.Asked = self.Name
	for i := range st.Nodes {
		if st.Nodes[i].Name == self.Name {
			st.Nodes[i] = self
			return
		}
	}
	st.Nodes = append([]queue.Node{self}, st.Nodes...)
}
