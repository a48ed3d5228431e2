package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"time"

	"postroad/delivery/smarthost"
	"postroad/delivery/smtpc"
)

// proof is what an attempt proves itself by to the next hop of its route.
type proof struct {
	auth    *smtpc.Auth // nil: no login
	login   smarthost.Login
	cert    *tls.Certificate // nil: none
	certKey string           // name and revision of cert
}

const (
	// loginWait is how long a job waits whose login or certificate cannot be had: it is cheap to look again.
	loginWait = 5 * time.Minute
	// firstRefusal is how long a refused login is not tried again, or while somebody tries it; twice as long each time.
	firstRefusal = 30 * time.Second
	maxRefusal   = 15 * time.Minute
	// maxRefused bounds the logins that hosts have refused, in memory.
	maxRefused = 1000
)

// prove gets what the route wants us to prove ourselves by. Without it nothing is sent: isReady is false, and the
// attempt has its replies.
func (a *attempt) prove(ctx context.Context) (isReady bool, err error) {
	r := a.route
	if r.Auth == "" && r.ClientCert == "" {
		return true, nil
	}
	keeper := a.w.o.SmartHosts
	if keeper == nil {
		a.cannotProve("no secrets are configured for this process", loginWait)
		return false, nil
	}
	if r.Auth != "" {
		login, err := keeper.Login(ctx, r.Auth)
		if err != nil {
			return false, a.notProved(ctx, err)
		}
		a.setLogin(login)
		if said, wait := a.w.refusedLogins.admit(a.loginKey()); wait > 0 {
			a.cannotProve("the next hop refuses our login smarthosts/"+r.Auth+": "+said, wait)
			return false, nil
		}
	}
	if r.ClientCert != "" {
		cert, err := keeper.Certificate(ctx, r.ClientCert)
		if err != nil {
			return false, a.notProved(ctx, err)
		}
		a.proof.cert, a.proof.certKey = cert.TLS, r.ClientCert+" "+cert.Revision
	}
	a.key.login = a.proof.key(r.Auth)
	return true, nil
}

func (a *attempt) setLogin(l smarthost.Login) {
	a.proof.login = l
	a.proof.auth = &smtpc.Auth{Username: l.Username, Password: l.Password, Mechanisms: l.Mechanisms, AllowInsecure: a.route.AuthInsecure}
	a.key.login = a.proof.key(a.route.Auth)
}

// key tells apart what connections must not be shared between; nothing secret is in it.
func (p *proof) key(auth string) string {
	key := p.certKey + "\n"
	if p.auth != nil {
		key += auth + " " + p.login.Revision
		if p.auth.AllowInsecure {
			key += " insecure"
		}
	}
	return key
}

// notProved makes the job wait for a secret that cannot be had.
func (a *attempt) notProved(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	a.cannotProve(err.Error(), loginWait)
	return nil
}

func (a *attempt) cannotProve(text string, wait time.Duration) {
	reply := localReply(451, "4.7.0", "no login at the next hop: "+text)
	reply.Phase = phaseRoute
	a.all(a.job, reply)
	a.cause, a.delay = causeLogin, wait
}

// loginKey is what a refusal of the login is remembered under: this version of it, at this next hop.
func (a *attempt) loginKey() string {
	return a.route.NextHop.String() + "\n" + a.route.Auth + "\n" + a.proof.login.Revision
}

// dialProved is dialTargets; when a host refuses our login, it looks whether the secret has just changed, and if so tries
// once more with the new one.
func (a *attempt) dialProved(ctx context.Context, targets []target, sessions int) (conn, error) {
	c, err := a.dialTargets(ctx, targets, sessions)
	if a.proof.auth == nil {
		return c, err
	}
	reply, isRefused := refusedLogin(err)
	if !isRefused {
		if err == nil {
			a.w.refusedLogins.forgive(a.loginKey())
		}
		return c, err
	}
	before := a.proof.login.Revision
	if login, lookErr := a.w.o.SmartHosts.LoginAfter(ctx, a.route.Auth); lookErr == nil && login.Revision != before {
		a.setLogin(login)
		c, err = a.dialTargets(ctx, targets, sessions)
		reply, isRefused = refusedLogin(err)
	}
	if isRefused && ctx.Err() == nil {
		a.w.o.Logger.Error("next hop refuses our login, mail of its route waits", "site", a.site, "secret", "smarthosts/"+a.route.Auth, "reply", replyText(reply))
		a.w.refusedLogins.add(a.loginKey(), replyText(reply))
	}
	return c, err
}

// refusedLogin reports that a host says our user name or password is wrong, and not only that it has trouble.
func refusedLogin(err error) (smtpc.Reply, bool) {
	e, is := errors.AsType[*smtpc.Error](err)
	if !is || e.Phase != smtpc.PhaseAuth || e.Reply == nil || e.Reply.Code/100 != 5 {
		return smtpc.Reply{}, false
	}
	return *e.Reply, true
}

// isLogin reports a failure to log in: the host is well, and others may have better credentials, or need none.
func isLogin(err error) bool {
	e, is := errors.AsType[*smtpc.Error](err)
	return is && e.Phase == smtpc.PhaseAuth && (e.Reply != nil && !e.Reply.Closing() || errors.Is(e.Err, smtpc.ErrAuth) || errors.Is(e.Err, smtpc.ErrAuthInsecure))
}

// refusedLogins are logins that hosts have refused of late: who tries a wrong password over and over gets his account
// locked. When the time of one is over, one job at a time tries it. A new version of the secret is another login.
type refusedLogins struct {
	mu   sync.Mutex
	list map[string]refusedOne
}

type refusedOne struct {
	until   time.Time
	pause   time.Duration
	probing bool // somebody tries it, or did when its time was over
	said    string
}

func (r *refusedLogins) add(key, said string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for k, one := range r.list {
		if now.After(one.until.Add(maxRefusal)) || len(r.list) >= maxRefused {
			delete(r.list, k)
		}
	}
	if r.list == nil {
		r.list = make(map[string]refusedOne)
	}
	one := r.list[key]
	if !one.probing && now.Before(one.until) {
		return // dialogues that were under way say nothing new
	}
	one.probing, one.pause, one.said = false, min(max(2*one.pause, firstRefusal), maxRefusal), said
	one.until = now.Add(one.pause)
	r.list[key] = one
}

// admit says what the host has said, and how long to wait before it is tried again; zero: now.
func (r *refusedLogins) admit(key string) (said string, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one, is := r.list[key]
	now := time.Now()
	if !is {
		return "", 0
	}
	if now.Before(one.until) {
		return one.said, one.until.Sub(now)
	}
	one.until, one.probing = now.Add(firstRefusal), true // the others wait for this one
	r.list[key] = one
	return "", 0
}

// forgive forgets that a login was refused.
func (r *refusedLogins) forgive(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.list, key)
}
